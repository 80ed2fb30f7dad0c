"""Draws keep the model's distribution whatever is guessed: chi-square over 20,000 texts, for chains and for trees.

What is drawn from is a table, so that so many texts take seconds; what is expected of it is computed here, and not by
what draws.  Tests of the test: a rule of acceptance that is wrong, and draws that are not those asked for, are noticed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drafter_modes import DRAFTERS, MODES, cached, made, said, save_second_model
from guesses import CHEAP, Eager, guessing
from scripted import VOCABULARY, ScriptedDecoder, ScriptedModels
from torch import Tensor

from tersor.codegen.target import find_target
from tersor.ir.drafting import GREEDILY, Draft, Drafting, Outlook, Rows
from tersor.ir.prompt_tokens import prompt_count
from tersor.passes.pipeline import run
from tersor.passes.spec import Spec
from tersor.passes.speculate.drafter import Drafter
from tersor.passes.speculate.insert import Speculate
from tersor.passes.speculate.several import _KINDS, Several
from tersor.runtime import generation
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampler, Sampling
from tersor.runtime.speculation import Statistics
from tersor.runtime.tree import TokenTree

# Texts that are drawn, tokens of each, and how many are under way at once.
MANY, FEW, NEW, TOGETHER = 20_000, 1_000, 4, 500
# Said before, so that there is something to look up; and the ends of it, so that drafters disagree.
PROMPT = [1, 2, 3, 1, 2, 0, 1, 2, 3, 0, 1, 2]
PLAIN = Sampling(temperature=0.8, top_k=0)
PROCESSED = Sampling(temperature=0.8, top_k=3, repetition_penalty=1.2)
# How likely, in the least, what right draws give is found to be, and at most what wrong ones give.
RIGHT, WRONG = 1e-3, 1e-9


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "Policy", Eager)


@pytest.fixture(scope="module")
def second_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_second_model(tmp_path_factory.mktemp("second"), VOCABULARY)


def chances(text: Sequence[int], logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Of each token behind a text, by what the options of ``transformers.generate`` mean."""
    scores = logits.astype(np.float64)
    there = np.isin(np.arange(VOCABULARY), text)
    penalty = sampling.repetition_penalty
    scores = np.where(there, np.where(scores > 0, scores / penalty, scores * penalty), scores)
    scores = scores / sampling.temperature
    if sampling.top_k:
        scores[scores < np.sort(scores)[-sampling.top_k]] = -np.inf
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


@cache
def expected(temperature: float, top_k: int, penalty: float) -> dict[tuple[int, ...], float]:
    """How likely every continuation is."""
    sampling = Sampling(temperature, top_k, repetition_penalty=penalty)
    decoder, found = ScriptedDecoder(), {(): 1.0}
    for _ in range(NEW):
        found = {
            (*text, token): chance * share
            for text, chance in found.items()
            for before in [[*PROMPT, *text]]
            for token, share in enumerate(chances(before, decoder.behind(before).numpy(), sampling))
        }
    return found


def chi_square(texts: Sequence[Sequence[int]], sampling: Sampling) -> float:
    """How likely counts are at least as far from what is expected."""
    wanted = expected(sampling.temperature, sampling.top_k, sampling.repetition_penalty)
    counts = dict.fromkeys(itertools.product(range(VOCABULARY), repeat=NEW), 0)
    for text in texts:
        counts[tuple(text)] += 1
    if any(counts[text] for text, chance in wanted.items() if chance == 0):
        return 0.0
    likely = {text: chance * len(texts) for text, chance in wanted.items() if chance > 0}
    # Cells of less than five texts are one.
    cells = [(counts[text], number) for text, number in likely.items() if number >= 5]
    rest = [(counts[text], number) for text, number in likely.items() if number < 5]
    if rest:
        cells.append((sum(c for c, _ in rest), sum(w for _, w in rest)))
    statistic = sum((count - number) ** 2 / number for count, number in cells)
    freedom = torch.tensor((len(cells) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2, dtype=torch.float64)))


class Watched(Drafting):
    """A drafting of which it is known whether it ever guessed more than a chain; its kinds are below ``kinds``."""

    def __init__(self, drafting: Drafting, seen: set[str], kinds: float) -> None:
        self._drafting, self._seen, self._kinds = drafting, seen, kinds

    def extend(self, tokens: Sequence[int]) -> None:
        self._drafting.extend(tokens)

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:
        self._drafting.observe(tokens, logits)

    def probed(self, logits: Tensor) -> None:
        self._drafting.probed(logits)

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        drafts = self._drafting.draft(most, outlook)
        assert all(0 <= kind < self._kinds for draft in drafts for kind in draft.kinds)
        if drafts:
            self._seen.add("chain" if TokenTree.of(0, drafts).is_chain else "tree")
        return drafts


def drawn(
    drafter: Drafter | None, count: int, sampling: Sampling
) -> tuple[list[list[int]], Statistics, set[str]]:
    """Texts; what came of guesses; and whether they were chains or trees."""
    counts, seen, texts = Statistics(), set[str](), []
    decoder, given = ScriptedDecoder(), dict[str, Any]()
    if drafter is not None:
        # What it asks for, it asks for of a real model.
        decoder.probes = prompt_count(Speculate(drafter).rewrite(cached(VOCABULARY), []))
        models = ScriptedModels(drafter.models(cached(VOCABULARY)), decoder)

        def guess(rows: Rows) -> Drafting:
            # What puts the kinds of others side by side has more.
            return Watched(drafter.begin(rows), seen, inf if isinstance(drafter, Several) else _KINDS)

        given = {"guess": guess, "models": models}
    for seed in range(count // TOGETHER):
        seeded = Sampling(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty, seed
        )
        prompts = [PROMPT] * TOGETHER
        texts += generate(decoder, prompts, Stopping(NEW), seeded, None, statistics=counts, **given)  # type: ignore[arg-type]
    assert len(texts) == count
    return texts, counts, seen


def check_draws(drafter: Drafter, count: int, sampling: Sampling) -> None:
    """Texts are as likely as they should be, and there was something to accept and to reject."""
    texts, counts, seen = drawn(drafter, count, sampling)
    assert chi_square(texts, sampling) > RIGHT
    assert counts.drafted
    assert all(0 < right < tried for right, tried in zip(counts.accepted, counts.drafted, strict=True))
    assert ("tree" in seen) == (counts.guesses > sum(counts.drafted)), "trees that are guessed are checked"


@pytest.mark.parametrize("mode", MODES, ids=said)
def test_draws_follow_the_models_distribution(mode: Any, second_model: Path) -> None:
    check_draws(made(mode, second_model), FEW, PROCESSED)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=said)
def test_draws_of_twenty_thousand_texts_do(mode: Any, second_model: Path) -> None:
    check_draws(made(mode, second_model), MANY, PLAIN)


@pytest.mark.parametrize(("sampling", "count"), [(PLAIN, MANY), (PROCESSED, FEW)], ids=["plain", "processed"])
def test_draws_without_guesses_follow_it_too(sampling: Sampling, count: int) -> None:
    texts, _, _ = drawn(None, count, sampling)
    assert chi_square(texts, sampling) > RIGHT


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.9, 1.25])
def test_noise_that_is_not_gumbels_is_noticed(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Sampler._noise
    monkeypatch.setattr(Sampler, "_noise", lambda self, place, ids: factor * noise(self, place, ids))
    texts, _, _ = drawn(None, MANY // 2, PLAIN)
    assert chi_square(texts, PLAIN) < WRONG


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.72, 0.88])
def test_another_temperature_is_noticed(temperature: float) -> None:
    texts, _, _ = drawn(None, MANY // 2, Sampling(temperature, top_k=0))
    assert chi_square(texts, PLAIN) < WRONG


Rule = Callable[[np.ndarray, Sequence[int], np.random.Generator], int]


def second_is_good_enough(shares: np.ndarray, guesses: Sequence[int], random: np.random.Generator) -> int:
    """A guess is taken where it is the second likeliest."""
    token = int(random.choice(len(shares), p=shares))
    return next((guess for guess in guesses if guess == shares.argsort()[-2]), token)


def no_guess_is_forgotten(shares: np.ndarray, guesses: Sequence[int], random: np.random.Generator) -> int:
    """Guesses are tried one after another, and what was rejected may still be drawn."""
    taken = (guess for guess in guesses if random.random() < shares[guess])
    return next(taken, int(random.choice(len(shares), p=shares)))


def rejected_is_left_out(shares: np.ndarray, guesses: Sequence[int], random: np.random.Generator) -> int:
    """Right, and another rule than ours: the standard one, of guesses that are certain of themselves."""
    for guess in guesses:
        if random.random() < shares[guess]:
            return guess
        shares = np.where(np.arange(len(shares)) == guess, 0, shares)
        shares = shares / shares.sum()
    return int(random.choice(len(shares), p=shares))


def by_another_rule(monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    """Let tokens behind guesses be chosen by ``rule``."""
    random = np.random.default_rng(0)

    def accepted(self: Any, row: Any, tree: TokenTree, logits: Tensor) -> list[int]:
        path = [0]
        while True:
            shares = chances(row.tokens, logits[path[-1]].numpy(), PLAIN)
            token = rule(shares, list(tree.children[path[-1]]), random)
            self._append(row, token)
            node = tree.children[path[-1]].get(token)
            if row.over or node is None:
                return path
            path.append(node)

    monkeypatch.setattr(generation._Loop, "_accepted", accepted)


@cache
def a_drafter_of(shape: str) -> type[Drafter]:
    """The first that is found whose drafts are chains, or trees."""
    text_alone = (kind for kind in DRAFTERS.values() if not kind().models(cached(VOCABULARY)))
    return next(kind for kind in text_alone if shape == max(drawn(kind(), TOGETHER, PLAIN)[2], default=""))


@pytest.mark.parametrize("shape", ["chain", "tree"])
@pytest.mark.parametrize("rule", [second_is_good_enough, no_guess_is_forgotten])
def test_a_wrong_rule_is_noticed(rule: Rule, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = a_drafter_of(shape)()
    by_another_rule(monkeypatch, rule)
    texts, _, seen = drawn(drafter, 4 * FEW, PLAIN)
    assert shape in seen
    assert chi_square(texts, PLAIN) < WRONG


@pytest.mark.parametrize("shape", ["chain", "tree"])
def test_another_right_rule_is_not_taken_for_a_wrong_one(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = a_drafter_of(shape)()
    by_another_rule(monkeypatch, rejected_is_left_out)
    texts, _, _ = drawn(drafter, 2 * FEW, PLAIN)
    assert chi_square(texts, PLAIN) > RIGHT


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=said)
def test_draws_of_real_models_are_those_without_guesses(
    mode: Any, second_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "cost_curve", CHEAP)
    drafter, sampling = made(mode, second_model), Sampling(0.8, 3, 1.0, 1.2, seed=5)
    texts = partial(generate, prompts=[PROMPT] * 10, stopping=Stopping(12), sampling=sampling)
    lower = find_target("torch").lower
    program, _ = run(cached(VOCABULARY), [str(Spec.of(Speculate(drafter)))])
    decoder, counts = Decoder(program, lower), Statistics()
    found = texts(decoder, statistics=counts, **guessing(decoder, drafter))
    assert counts.guesses
    assert found == texts(Decoder(cached(VOCABULARY), lower))
