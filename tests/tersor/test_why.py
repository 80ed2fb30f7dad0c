"""Where tokens part from the model's: nowhere, at a tie, or at a mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import PROMPTS, decoder

import tersor
from tersor.ir.errors import InputError
from tersor.runtime.decoder import Decoder
from tersor.why import compare_with_model


@pytest.fixture
def fast() -> Any:
    return tersor.optimize_model(decoder("gemma3"), ["kv-cache", "speculate"], "torch")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_models_own_tokens_are_told_as_such(fast: Any, prompt: list[int]) -> None:
    found = compare_with_model(fast, decoder("gemma3"), prompt, 12)
    assert found.ok
    assert found.divergence is None
    assert f"all {found.tokens} tokens" in str(found)


def test_a_token_that_the_model_would_not_choose_is_no_tie(
    fast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fast.generate([PROMPTS[1]], max_new_tokens=6)[0][len(PROMPTS[1]) :]
    step = Decoder.try_step

    def other(self: Decoder, cache: Any, *given: Any) -> torch.Tensor:
        logits = step(self, cache, *given)
        logits[..., (right[1] + 1) % 100] += 100
        return logits

    monkeypatch.setattr(Decoder, "try_step", other)
    fast.generator._guess = None
    found = compare_with_model(fast, decoder("gemma3"), PROMPTS[1], 6)
    assert found.divergence is not None
    assert not found.ok
    assert (found.divergence.place, found.divergence.tokens[0]) == (1, right[1])
    # A whole run gives the right logits: what is wrong is in the steps.
    assert found.divergence.difference < 1e-4
    assert found.to_json()["divergence"]["tie"] is False


def test_another_model_is_no_tie(fast: Any) -> None:
    found = compare_with_model(fast, decoder("qwen3"), PROMPTS[1], 12)
    assert not found.ok


def test_what_keeps_no_cache_is_an_error() -> None:
    bare = tersor.optimize_model(decoder("gemma3"), [], "torch")
    with pytest.raises(InputError, match="keeps no cache"):
        compare_with_model(bare, decoder("gemma3"), [5], 3)
