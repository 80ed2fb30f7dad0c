"""Draws keep the model's distribution whatever is guessed: chi-square over 20,000 draws, for chains and for trees."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from architectures import LLAMA, huggingface
from guesses import Eager, guessing
from torch import Tensor

from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.pipeline import run
from tersor.passes.registry import find_methods
from tersor.passes.speculate.drafter import Drafter
from tersor.runtime import generation
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampler, Sampling
from tersor.runtime.speculation import Statistics
from tersor.runtime.tree import TokenTree

VOCABULARY, TEXTS, TOGETHER = 5, 7_000, 500
# Said before, so that there is something to look up; and the ends of it, so that drafters disagree.
PROMPT = [1, 2, 3, 1, 2, 4, 1, 2, 3, 0, 1, 2]
SAMPLING = Sampling(temperature=0.8, top_k=4, repetition_penalty=1.2)
DRAFTERS = find_methods(Drafter)  # type: ignore[type-abstract]
# By default these know all that the model knows of so small a text, and are never wrong.
OPTIONS: dict[str, dict[str, Any]] = {"model": {"exits": (1,)}, "triforce": {"budget": 4, "chunk": 2}}


@cache
def captured() -> Program:
    return capture(huggingface("LlamaConfig", "LlamaForCausalLM", **dict(LLAMA, vocab_size=VOCABULARY))())


@cache
def decoder(name: str = "several") -> Decoder:
    """What checks the guesses of a drafter."""
    program, _ = run(captured(), ["kv-cache", f"speculate:drafter={name}"])
    made = Decoder(program, find_target("torch").lower)
    # Steps take so long, it is said, that drafts pay on any machine.
    made._curve = CostCurve((1, 2), (1e4, 1e4))
    return made


@cache
def expected(new: int) -> dict[tuple[int, ...], float]:
    """How likely every continuation of so many tokens is."""
    sampler = Sampler(SAMPLING)
    chances = {(): 1.0}
    for _ in range(new):
        longer = {}
        for text, chance in chances.items():
            before = [*PROMPT, *text]
            logits = decoder().prefill(decoder().new_cache(1), 0, before)
            for token, share in enumerate(sampler.distribution(before, logits).tolist()):
                longer[*text, token] = chance * share
        chances = longer
    return chances


def chi_square(texts: Sequence[Sequence[int]]) -> float:
    """How likely counts are at least as far from what is expected."""
    new = len(texts[0])
    counts = dict.fromkeys(itertools.product(range(VOCABULARY), repeat=new), 0)
    for text in texts:
        counts[tuple(text)] += 1
    assert not any(counts[text] for text, chance in expected(new).items() if chance == 0)
    likely = {text: chance * len(texts) for text, chance in expected(new).items() if chance > 0}
    # Cells of less than five texts are one.
    cells = [(counts[text], wanted) for text, wanted in likely.items() if wanted >= 5]
    rest = [(counts[text], wanted) for text, wanted in likely.items() if wanted < 5]
    if rest:
        cells.append((sum(c for c, _ in rest), sum(w for _, w in rest)))
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


def drawn(name: str | None, texts: int) -> tuple[list[list[int]], Statistics]:
    counts, found = Statistics(), []
    drafter = None if name is None else DRAFTERS[name](**OPTIONS.get(name, {}))
    checks = decoder() if name is None else decoder(name)
    # The first step with prompt tokens guesses nothing, and the last may not.
    new = 4 if name == "ppd" else 3
    for seed in range(texts // TOGETHER):
        sampling = Sampling(
            SAMPLING.temperature, SAMPLING.top_k, SAMPLING.top_p, SAMPLING.repetition_penalty, seed
        )
        given = guessing(checks, drafter)
        prompts = [PROMPT] * TOGETHER
        found += generate(checks, prompts, Stopping(new), sampling, None, statistics=counts, **given)
    return found, counts


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "Policy", Eager)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_draws_follow_the_models_distribution(name: str) -> None:
    texts, counts = drawn(name, TEXTS)
    assert sum(map(len, texts)) >= 20_000
    assert chi_square(texts) > 1e-3
    # There were guesses, right ones and wrong ones.
    assert counts.drafted
    assert all(0 < right < tried for right, tried in zip(counts.accepted, counts.drafted, strict=True))
    if name in ("recycle", "several", "ppd"):
        assert counts.guesses > sum(counts.drafted), "no tree was checked"


def test_accepting_what_is_merely_likely_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_kind(self: generation._Loop, row: generation._Row, tree: TokenTree, logits: Tensor) -> list[int]:
        path = [0]
        while True:
            chances = row.sampler.distribution(row.tokens, logits[path[-1]])
            token = row.sampler.choose(row.tokens, logits[path[-1]])
            # A guess that is not unlikely is taken as if it had been drawn.
            token = next((t for t in tree.children[path[-1]] if chances[t] > 0.15), token)
            self._append(row, token)
            node = tree.children[path[-1]].get(token)
            if row.over or node is None:
                return path
            path.append(node)

    monkeypatch.setattr(generation._Loop, "_accepted", too_kind)
    texts, _ = drawn("ngram", 2000)
    assert chi_square(texts) < 1e-9


def test_draws_without_guesses_follow_it_too() -> None:
    texts, _ = drawn(None, 2000)
    assert chi_square(texts) > 1e-3
