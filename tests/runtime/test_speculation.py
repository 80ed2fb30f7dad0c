"""Guesses change how fast tokens come, never which; and they stop where they do not pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from decoders import PROMPTS, decoder_on

from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Guesser, Policy, Statistics

# Wider steps cost hardly more, as on a machine that waits for memory.
CHEAP = CostCurve((1, 2, 3, 5, 9), (1.0, 1.02, 1.04, 1.08, 1.2))


@dataclass
class Chain:
    tokens: list[int]
    kind: int = 0


@dataclass
class Knowing:
    """Guesses from a text that it has been given, some of it changed."""

    text: list[int]
    wrong_at: frozenset[int] = frozenset()
    seen: list[int] = field(default_factory=list)

    def extend(self, tokens: Sequence[int]) -> None:
        self.seen += tokens

    def draft(self, most: int) -> list[Chain]:
        start = len(self.seen)
        ahead = self.text[start : start + most]
        return [Chain([(t + 1) % 120 if start + i in self.wrong_at else t for i, t in enumerate(ahead)])]


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    on = decoder_on("gemma3", "torch")
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
    made: Callable[[], Guesser] = lambda: Knowing(prompt + plain, frozenset(wrong))  # noqa: E731
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
        decoder, PROMPTS, Stopping(20), Sampling(), None, lambda: Knowing(next(texts), next(wrong)), counts
    )
    assert found == plain


def test_rows_that_draw_with_guesses_draw_what_they_draw_without(decoder: Decoder) -> None:
    sampling = Sampling(temperature=1.2, seed=5)
    plain = generate(decoder, PROMPTS, Stopping(20), sampling)
    texts = iter([p + n for p, n in zip(PROMPTS, plain, strict=True)])
    wrong = iter([frozenset(range(0)), frozenset(range(0, 1000, 5)), frozenset(range(0, 1000, 2))])
    guessed = generate(
        decoder, PROMPTS, Stopping(20), sampling, None, lambda: Knowing(next(texts), next(wrong))
    )
    assert guessed == plain


def test_nothing_follows_an_end_in_the_midst_of_right_guesses(decoder: Decoder) -> None:
    prompt = PROMPTS[1]
    plain = generate(decoder, [prompt], Stopping(20), Sampling())[0]
    end = plain[6]
    cut = plain[: plain.index(end) + 1]
    made: Callable[[], Guesser] = lambda: Knowing(prompt + plain)  # noqa: E731
    assert generate(decoder, [prompt], Stopping(20, ends={end}), Sampling(), None, made)[0] == cut
    for most in range(1, 9):
        assert generate(decoder, [prompt], Stopping(most), Sampling(), None, made)[0] == plain[:most]


def simulated(policy: Policy, right: Callable[[int], int], steps: int) -> tuple[float, float]:
    """Seconds with guesses, and for as many tokens without, on the machine of the policy's own curve."""
    seconds = tokens = 0.0
    for step in range(steps):
        chain = Chain([1] * policy.longest)
        checked = len(policy.choose([chain]))
        accepted = min(checked, right(step))
        policy.learn([chain], checked, [1] * accepted + [1 if right(step) > accepted else 0])
        seconds += CHEAP.of(1 + checked)
        tokens += 1 + accepted
    return seconds, tokens * CHEAP.of(1)


def test_guesses_that_are_never_right_cost_next_to_nothing() -> None:
    seconds, plain = simulated(Policy(CHEAP), lambda _: 0, 200)
    assert seconds <= 1.03 * plain


def test_guesses_that_are_right_are_made_as_long_as_they_can_be() -> None:
    seconds, plain = simulated(Policy(CHEAP), lambda _: 99, 100)
    assert seconds < 0.2 * plain


def test_guesses_are_made_again_when_they_become_right() -> None:
    policy = Policy(CHEAP)
    simulated(policy, lambda _: 0, 100)
    seconds, plain = simulated(policy, lambda _: 99, 200)
    assert seconds < 0.5 * plain


def test_on_a_machine_where_wider_steps_cost_as_much_more_nothing_is_guessed() -> None:
    policy = Policy(CostCurve((1, 2, 3), (1.0, 2.0, 3.0)))
    assert policy.choose([Chain([1, 2])]) == []


def test_the_chain_is_checked_whose_kind_was_right() -> None:
    policy = Policy(CHEAP)
    good, bad = Chain([1] * 8, kind=1), Chain([2] * 8, kind=2)
    for _ in range(20):
        policy.learn([bad, good], 0, [1])
    assert policy.choose([bad, good])[:1] == [1]


def test_what_is_not_checked_is_learned_from_too() -> None:
    policy = Policy(CostCurve((1, 2, 3), (1.0, 1.2, 1.4)))
    chain = Chain([1] * 8)
    for _ in range(60):
        policy.learn([chain], 0, [0])
    assert policy.choose([chain]) == []
    for _ in range(60):
        policy.learn([chain], 0, [1])
    assert policy.choose([chain]) != []


def test_the_curve_rises_and_is_read_between_its_points() -> None:
    curve = CostCurve((1, 3), (2.0, 4.0))
    assert [curve.of(n) for n in (1, 2, 3, 6)] == [2.0, 3.0, 4.0, 8.0]
    ran: list[int] = []
    measured = CostCurve.measured(ran.append, (1, 2))
    assert ran == [1, 2] * 4
    assert measured.seconds[0] <= measured.seconds[1]


def test_statistics_are_one_line() -> None:
    counts = Statistics()
    counts.count(3, 2)
    counts.count(1, 0)
    counts.steps, counts.tokens = 2, 4
    assert "4 tokens in 2 steps (2.00 a step); guesses right by place: 1/2 1/1 0/1" in str(counts)
    assert "\n" not in str(counts)


def test_logits_of_every_guess_are_looked_at(decoder: Decoder) -> None:
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, PROMPTS[1])
    cache.reserve(4)
    together = decoder.try_step(cache, [[5, 6, 7, 8]])[0]
    one_by_one = torch.stack([decoder.step(cache, [[token]])[0, 0] for token in (5, 6, 7, 8)])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5)
