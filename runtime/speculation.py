"""How many tokens to guess ahead: as many as gave most tokens per second, by what was right so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .cost_curve import CostCurve

# What is known of a kind of guess loses this share of its weight with every one that turns out right or wrong.
_FORGET = 0.03
# Before anything is known, a guess counts as right this often, with the weight of as many guesses.
_PRIOR, _PRIOR_WEIGHT = 0.6, 2.0
# Guessing may have cost, on balance, this share of all the time and the time of so many steps of one token.
_MAY_LOSE, _CREDIT = 0.01, 1.0


class Chain(Protocol):
    """Guesses of what follows, the next token first; those of one kind are right about as often as each other."""

    @property
    def tokens(self) -> list[int]: ...

    @property
    def kind(self) -> int: ...


class Guesser(Protocol):
    """Who guesses what follows a sequence; ``passes.speculate`` has several."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that have been added to the sequence."""

    def draft(self, most: int) -> Sequence[Chain]:
        """Chains of at most ``most`` guesses, of which one is checked; none where there is nothing to go by."""


@dataclass
class Statistics:
    """What guessing came to.

    Attributes:
        steps: runs of the model behind the prompt.  tokens: what they gave.
        drafted, accepted: guesses by their place in the chain, and how many of each were right.
        drafting, verifying: seconds.
    """

    steps: int = 0
    tokens: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    drafting: float = 0.0
    verifying: float = 0.0

    def count(self, drafted: int, accepted: int) -> None:
        """One chain, of which the first ``accepted`` guesses were right."""
        missing = drafted - len(self.drafted)
        self.drafted += [0] * missing
        self.accepted += [0] * missing
        for place in range(drafted):
            self.drafted[place] += 1
            self.accepted[place] += place < accepted

    def __str__(self) -> str:
        places = " ".join(f"{a}/{d}" for a, d in zip(self.accepted, self.drafted, strict=True)) or "none"
        share = self.tokens / self.steps if self.steps else 0.0
        return (
            f"{self.tokens} tokens in {self.steps} steps ({share:.2f} a step); guesses right by place: {places}; "
            f"{self.verifying:.2f} s in the model, {self.drafting:.3f} s guessing"
        )


@dataclass
class _Kind:
    """How often guesses of one kind were right, by place in the chain, given that all before were."""

    right: list[float]
    tried: list[float]

    def rate(self, place: int) -> float:
        return (self.right[place] + _PRIOR * _PRIOR_WEIGHT) / (self.tried[place] + _PRIOR_WEIGHT)


class Policy:
    """Chooses a chain and its length by what each length costs here and how often guesses of its kind were right."""

    def __init__(self, curve: CostCurve) -> None:
        self._curve = curve
        self._lengths = [width - 1 for width in curve.widths]
        self._kinds: dict[int, _Kind] = {}
        self._spent, self._lost = 0.0, 0.0

    @property
    def longest(self) -> int:
        return self._lengths[-1]

    def choose(self, chains: Sequence[Chain]) -> list[int]:
        """The guesses to check, those with which most tokens are expected a second; none where none would gain."""
        best, chosen = 1.0 / self._curve.of(1), list[int]()
        if self._lost > _MAY_LOSE * self._spent + _CREDIT * self._curve.of(1):
            return chosen
        for chain in chains:
            known = self._known(chain.kind)
            expected, reached, place = 1.0, 1.0, 0
            for length in self._lengths[1:]:
                if length > len(chain.tokens):
                    break
                while place < length:
                    reached *= known.rate(place)
                    expected += reached
                    place += 1
                if expected / self._curve.of(1 + length) > best:
                    best, chosen = expected / self._curve.of(1 + length), chain.tokens[:length]
        return chosen

    def learn(self, chains: Sequence[Chain], checked: int, followed: Sequence[int]) -> None:
        """What came of a step that checked so many guesses: the tokens that followed.

        Chains that were not checked are held against them too, as far as they go: that costs nothing, and shows when
        guesses become right again.
        """
        single = self._curve.of(1)
        self._spent += self._curve.of(1 + checked)
        # What was won long ago is no reason to lose now.
        self._lost = max(0.0, self._lost + self._curve.of(1 + checked) - single * len(followed))
        for chain in chains:
            known = self._known(chain.kind)
            for place, (guess, token) in enumerate(zip(chain.tokens, followed, strict=False)):
                known.tried[place] = known.tried[place] * (1 - _FORGET) + 1
                known.right[place] = known.right[place] * (1 - _FORGET) + (guess == token)
                if guess != token:
                    break

    def _known(self, kind: int) -> _Kind:
        if kind not in self._kinds:
            self._kinds[kind] = _Kind([0.0] * self.longest, [0.0] * self.longest)
        return self._kinds[kind]
