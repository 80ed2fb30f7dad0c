"""Guesses change how fast tokens come, never which; and they stop where they do not pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from architectures import VOCABULARY
from decoders import DECODERS, PROMPTS, decoder_on, decoder_program
from guesses import CHEAP, draft_of, learn
from torch import Tensor

from tersor.codegen.target import find_target
from tersor.ir.drafting import Draft, Drafting
from tersor.ir.errors import InputError
from tersor.passes.pipeline import run
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Policy, Rates, Statistics
from tersor.runtime.tree import TokenTree, side_by_side


@dataclass
class Knowing(Drafting):
    """Guesses from a text that it has been given, some of it changed; in a tree, other guesses are beside them."""

    text: list[int]
    wrong_at: frozenset[int] = frozenset()
    siblings: int = 0
    seen: list[int] = field(default_factory=list)

    def extend(self, tokens: Sequence[int]) -> None:
        self.seen += tokens

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:
        assert logits.shape == (len(tokens), VOCABULARY)

    def draft(self, most: int, outlook: Any = None) -> list[Draft]:
        start = len(self.seen)
        ahead = self.text[start : start + most]
        known = [(t + 1) % 120 if start + i in self.wrong_at else t for i, t in enumerate(ahead)]
        others = [
            draft_of([*known[:place], (token + 2 + other) % 120, *known[place:-1]], 1 + other)
            for place, token in enumerate(known)
            for other in range(self.siblings)
        ]
        return [*others, draft_of(known)]


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    return _cheap("gemma3", "torch", monkeypatch)


def _cheap(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> Decoder:
    on = decoder_on(name, target)
    monkeypatch.setattr(type(on), "cost_curve", CHEAP)
    return on


SAMPLINGS = [Sampling(), Sampling(repetition_penalty=1.4), Sampling(temperature=1.5, seed=7)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "penalty", "drawn"])
@pytest.mark.parametrize("wrong", [range(0), range(1000), range(0, 1000, 3), range(0, 1000, 7)])
def test_tokens_are_the_same_with_guesses_right_and_wrong(
    decoder: Decoder, sampling: Sampling, wrong: range
) -> None:
    prompt = PROMPTS[1]
    plain = generate(decoder, [prompt], Stopping(30), sampling)[0]
    counts = Statistics()
    made: Callable[[Any], Drafting] = lambda _: Knowing(prompt + plain, frozenset(wrong))  # noqa: E731
    assert generate(decoder, [prompt], Stopping(30), sampling, None, made, counts)[0] == plain
    assert counts.tokens == 29  # the first comes of the prompt
    if not len(wrong):
        assert counts.steps < 10
        assert counts.accepted == counts.drafted
    if len(wrong) == 1000:
        assert not any(counts.accepted)


def test_rows_with_guesses_of_their_own_are_the_rows_alone(decoder: Decoder) -> None:
    plain = generate(decoder, PROMPTS, Stopping(20), Sampling())
    texts = iter([p + n for p, n in zip(PROMPTS, plain, strict=True)])
    counts = Statistics()
    wrong = iter([frozenset(range(0)), frozenset(range(1000)), frozenset(range(0, 1000, 4))])
    found = generate(
        decoder, PROMPTS, Stopping(20), Sampling(), None, lambda _: Knowing(next(texts), next(wrong)), counts
    )
    assert found == plain


def test_rows_that_draw_with_guesses_draw_what_they_draw_without(decoder: Decoder) -> None:
    sampling = Sampling(temperature=1.2, seed=5)
    plain = generate(decoder, PROMPTS, Stopping(20), sampling)
    texts = iter([p + n for p, n in zip(PROMPTS, plain, strict=True)])
    wrong = iter([frozenset(range(0)), frozenset(range(0, 1000, 5)), frozenset(range(0, 1000, 2))])
    guessed = generate(
        decoder, PROMPTS, Stopping(20), sampling, None, lambda _: Knowing(next(texts), next(wrong))
    )
    assert guessed == plain


@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_the_same_with_trees_of_guesses(
    name: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _cheap(name, target, monkeypatch)
    plain = generate(decoder, PROMPTS, Stopping(16), Sampling())
    wrong = frozenset(range(0, 1000, 5))
    for prompt, new in zip(PROMPTS, plain, strict=True):
        counts = Statistics()
        made: Callable[[Any], Drafting] = lambda _, text=prompt + new: Knowing(text, wrong, 2)  # type: ignore[misc]  # noqa: E731
        assert generate(decoder, [prompt], Stopping(16), Sampling(), None, made, counts)[0] == new
        assert counts.guesses > sum(counts.drafted)
        assert counts.steps < 16
    texts = iter([p + n for p, n in zip(PROMPTS, plain, strict=True)])
    together = generate(
        decoder, PROMPTS, Stopping(16), Sampling(), None, lambda _: Knowing(next(texts), wrong, 2)
    )
    assert together == plain


@pytest.mark.parametrize("siblings", [0, 1])
@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_row_at_the_models_last_positions_is_beside_one_with_many_guesses(
    name: str, target: str, siblings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = _cheap(name, target, monkeypatch)
    assert decoder.longest == 64
    prompts, stopping = [[5] * 61, PROMPTS[1]], Stopping(None, longest=65)
    plain = generate(decoder, prompts, stopping, Sampling())
    texts = iter([p + n for p, n in zip(prompts, plain, strict=True)])
    counts = Statistics()
    wrong = frozenset(range(62, 1000))
    found = generate(
        decoder, prompts, stopping, Sampling(), None, lambda _: Knowing(next(texts), wrong, siblings), counts
    )
    assert found == plain
    assert len(counts.drafted) > 4


def test_a_model_without_the_pass_checks_no_guesses() -> None:
    program, _ = run(decoder_program("llama"), ["kv-cache"])
    bare = Decoder(program, find_target("torch").lower)
    with pytest.raises(InputError, match="-p speculate"):
        generate(bare, PROMPTS, Stopping(4), Sampling(), None, lambda _: Knowing([]))


def test_nothing_follows_an_end_in_the_midst_of_right_guesses(decoder: Decoder) -> None:
    prompt = PROMPTS[1]
    plain = generate(decoder, [prompt], Stopping(20), Sampling())[0]
    end = plain[6]
    cut = plain[: plain.index(end) + 1]
    made: Callable[[Any], Drafting] = lambda _: Knowing(prompt + plain)  # noqa: E731
    assert generate(decoder, [prompt], Stopping(20, ends={end}), Sampling(), None, made)[0] == cut
    for most in range(1, 9):
        assert generate(decoder, [prompt], Stopping(most), Sampling(), None, made)[0] == plain[:most]


def simulated(curve: CostCurve, right: Callable[[int], int], steps: int) -> tuple[float, float]:
    """Seconds with guesses, and for as many tokens without, on the machine of a curve."""
    policy, rates = Policy(curve), Rates()
    seconds = tokens = 0.0
    for step in range(steps):
        tree = TokenTree.of(0, [draft_of([1] * policy.longest(1))])
        _, chances = rates.ranked(tree, policy.longest(1))
        checked = policy.guesses([chances])
        accepted = min(checked, right(step))
        policy.learn(1, checked, 1 + accepted, 0.0)
        learn(rates, tree, [1] * accepted + [1 if right(step) > accepted else 0])
        seconds += curve.of(1 + checked)
        tokens += 1 + accepted
    return seconds, tokens * curve.of(1)


def test_guesses_that_are_never_right_cost_next_to_nothing() -> None:
    seconds, plain = simulated(CHEAP, lambda _: 0, 200)
    assert seconds <= 1.03 * plain


def test_guesses_that_are_right_are_made_as_long_as_they_can_be() -> None:
    seconds, plain = simulated(CHEAP, lambda _: 99, 100)
    assert seconds < 0.1 * plain


def test_guesses_are_made_again_when_they_become_right() -> None:
    seconds, plain = simulated(CHEAP, lambda step: 99 if step >= 100 else 0, 300)
    assert seconds < 0.5 * plain


def test_on_a_machine_where_wider_steps_cost_as_much_more_nothing_is_guessed() -> None:
    policy = Policy(CostCurve((1, 2, 3), (1.0, 2.0, 3.0)))
    assert policy.guesses([[0.9, 0.8]]) == 0
    assert policy.guesses([[0.99], [0.99]]) == 0


def test_rows_together_share_what_a_step_costs() -> None:
    curve = CostCurve((1, 2, 4, 8), (1.0, 1.2, 3.0, 7.0))
    assert Policy(curve).guesses([[0.6]]) == 1
    assert Policy(curve).guesses([[0.6], [0.6]]) == 0
    assert Policy(curve).longest(2) == 3


def test_time_that_guessing_takes_is_a_loss_too() -> None:
    policy = Policy(CHEAP)
    for _ in range(50):
        policy.learn(1, 1, 2, 0.9)
    assert policy.guesses([[0.9]]) == 1
    for _ in range(50):
        policy.learn(1, 1, 2, 1.1)
    assert policy.guesses([[0.9]]) == 0


def test_after_losses_only_what_is_surer_is_checked() -> None:
    policy = Policy(CHEAP)
    assert policy.guesses([[0.2]]) == 1
    # As where the machine was busy with something else for the time of ten steps.
    policy.learn(1, 0, 1, 10.0)
    for _ in range(20):
        policy.learn(1, 0, 1, 0.0)
    assert policy.guesses([[0.2]]) == 0
    assert policy.guesses([[0.9]]) == 1


def test_what_is_not_checked_is_learned_from_too() -> None:
    rates, tree = Rates(), TokenTree.of(0, [draft_of([1] * 8)])
    before = rates.of(0, 1, 0.6)
    for _ in range(60):
        learn(rates, tree, [0])
    assert rates.of(0, 1, 0.6) < 0.2 < before
    for _ in range(60):
        learn(rates, tree, [1])
    assert rates.of(0, 1, 0.6) > 0.7


def test_the_curve_rises_and_is_read_between_its_points() -> None:
    curve = CostCurve((1, 3), (2.0, 4.0))
    assert [curve.of(n) for n in (1, 2, 3, 6)] == [2.0, 3.0, 4.0, 8.0]
    ran: list[int] = []
    measured = CostCurve.measured(ran.append, (1, 2))
    assert ran == [1, 2] * 6
    assert measured.seconds[0] <= measured.seconds[1]


def test_statistics_are_one_line() -> None:
    counts = Statistics()
    counts.count(TokenTree.of(0, [draft_of([1, 2, 3]), draft_of([1, 4])]), 2)
    counts.count(TokenTree.of(0, [draft_of([1])]), 0)
    counts.steps, counts.tokens = 2, 4
    assert "4 tokens in 2 steps (2.00 a step); 5 guesses, right by place: 1/2 1/1 0/1" in str(counts)
    assert "\n" not in str(counts)


def test_logits_of_every_guess_are_looked_at(decoder: Decoder) -> None:
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, PROMPTS[1])
    cache.reserve(4)
    together = decoder.try_step(cache, [[5, 6, 7, 8]])[0]
    one_by_one = torch.stack([decoder.step(cache, [[token]])[0, 0] for token in (5, 6, 7, 8)])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["gemma3", "gemma2", "gpt2"])
def test_logits_behind_every_node_of_a_tree_are_those_of_its_path(name: str, target: str) -> None:
    decoder = decoder_on(name, target)
    tree = TokenTree.of(5, [draft_of([6, 7, 8]), draft_of([6, 9]), draft_of([10, 7, 11])])
    for prompts in ([PROMPTS[1]], [PROMPTS[1], PROMPTS[2]]):
        cache = decoder.new_cache(len(prompts))
        for row, prompt in enumerate(prompts):
            decoder.prefill(cache, row, prompt)
        cache.reserve(len(tree))
        found = decoder.try_step(cache, *side_by_side([tree] * len(prompts)))
        for row, prompt in enumerate(prompts):
            for node, path in enumerate(tree.paths()):
                along = [tree.tokens[i] for i in path.nonzero()[:, 0].tolist()]
                expected = decoder.prefill(decoder.new_cache(1), 0, prompt + along)
                torch.testing.assert_close(found[row, node], expected, rtol=0, atol=1e-5)
