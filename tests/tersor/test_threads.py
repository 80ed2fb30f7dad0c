"""A model that several threads generate with at once gives each what it gives one alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from text_folder import save_text_model

from tersor import optimize_model


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_threads_take_turns(tmp_path: Path, target: str) -> None:
    fast: Any = optimize_model(save_text_model(tmp_path / "model"), ["kv-cache", "speculate"], target)
    prompts = [[3 + number, 4 + number, 5 + number] for number in range(6)]

    def generated(prompt: list[int]) -> list[list[int]]:
        return fast.generate([prompt], max_new_tokens=40)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(generated, prompts * 3))
    expected = [generated(prompt) for prompt in prompts]
    assert found == expected * 3


def test_what_is_told_a_token_may_generate_too(tmp_path: Path) -> None:
    fast: Any = optimize_model(save_text_model(tmp_path / "model"), ["kv-cache"], "onnx")
    alone, other = (fast.generate([prompt], max_new_tokens=8) for prompt in ([5, 6], [9]))
    inner: list[Any] = []
    found = fast.generate(
        [[5, 6]], max_new_tokens=8, stream=lambda told: inner.append(fast.generate([[9]], max_new_tokens=8))
    )
    assert found == alone
    assert inner == [other] * 8
