"""Suffix lookup: what followed the longest end of the text that stood anywhere before, as a tree weighted by counts.

As in SuffixDecoding (Oliaro et al. 2024), which keeps one tree of a request and one of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple

from torch import nn

from tersor.ir.drafting import GREEDILY, NO_ROWS, Draft, Drafting, Outlook, Rows

from .automaton import End, SuffixAutomaton
from .best_first import Guess, best_first
from .drafter import Drafter, chance_of_match
from .lookup import Lookup

# Longer matches are right as often as matches of this length.
_KINDS = 12
# What followed half the time or more, but not last; what did less often, and not last; what did last, and seldom.
_USUAL, _RIVAL, _SELDOM = range(3)
# What followed last, by length of the match: the only time or half the time; and where most places agree.
_ONCE, _SURE = 3, 3 + _KINDS
# Guesses of all texts have kinds of their own.
_EVERYWHERE = 3 + 2 * _KINDS
# Measured on what Gemma 3 270M says: below the first share a follower that is not the latest is hardly ever right.
_OFFERED, _HALF, _MOST = 0.3, 0.45, 0.55
_CHANCES = {_RIVAL: 0.1, _SELDOM: 0.15}
# Where more than one place agrees, so much is left of the chance to be wrong.
_DOUBT = 0.2


@dataclass(frozen=True)
class Suffix(Drafter):
    """Guess what followed the longest run that ends here and stood before, by how often it did and what did last.

    Texts that are generated side by side know of each other.
    """

    name: ClassVar[str] = "suffix"
    reported: ClassVar[str] = "up to 5.3x, agents"

    shortest: int = field(default=1, metadata={"help": "tokens that must have stood before"})
    remember: int = field(
        default=200_000, metadata={"help": "tokens of earlier texts that are looked through"}
    )

    def __post_init__(self) -> None:
        if self.shortest < 1 or self.remember < 0:
            raise ValueError(
                f"shortest={self.shortest} must be 1 or more, remember={self.remember} 0 or more"
            )

    @cached_property
    def _memory(self) -> _Memory:
        return _Memory(self.remember)

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        texts = [_Text(_Memory())] + ([_Text(self._memory)] if self.remember else [])
        return _Lookup(self.shortest, texts)

    def as_module(self, most: int) -> nn.Module:
        """Of this text alone: a function remembers no earlier one."""
        return Lookup(self.shortest, max(self.shortest, _KINDS), most)


class _Memory:
    """The runs of texts, which begin anew when they hold ``most`` tokens; None where nothing bounds them."""

    def __init__(self, most: int | None = None) -> None:
        self.runs = SuffixAutomaton()
        self._most = most

    def with_room(self) -> SuffixAutomaton:
        """Where one more token goes."""
        if self._most is not None and self.runs.size >= self._most:
            # What is oldest is worth least, and a new start is cheaper than forgetting piece by piece.
            self.runs = SuffixAutomaton()
        return self.runs


class _Text:
    """A text that is taken up into a memory token by token, so that nobody need know when it is over."""

    def __init__(self, memory: _Memory) -> None:
        self._memory, self.runs, self._end = memory, memory.runs, End()

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            runs = self._memory.with_room()
            if runs is not self.runs:
                self.runs, self._end = runs, End()
            runs.append(self._end, token)

    def match(self) -> _Place:
        """The longest end that stood before."""
        return _Place(*self.runs.followed(self._end.state, self._end.length))


class _Place(NamedTuple):
    """A run of ``length`` tokens by its state in an automaton."""

    state: int
    length: int


class _Lookup(Drafting):
    """One text, among its own runs first, and then among those of all texts."""

    def __init__(self, shortest: int, texts: Sequence[_Text]) -> None:
        self._shortest, self._texts = shortest, texts

    def extend(self, tokens: Sequence[int]) -> None:
        for text in self._texts:
            text.extend(tokens)

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        drafts: list[Draft] = []
        least = self._shortest
        for side, text in enumerate(self._texts):
            match = text.match()
            # Where it matches as far, this text says better what follows than others do.
            if match.length >= least:
                drafts += _Tree(text.runs, match, side * _EVERYWHERE).grown(most)
                least = match.length + 1
        return drafts


class _Tree:
    """What followed a match, and what followed that."""

    def __init__(self, runs: SuffixAutomaton, match: _Place, first_kind: int) -> None:
        self._runs, self._match, self._first_kind = runs, match, first_kind

    def grown(self, most: int) -> list[Draft]:
        """Its ``most`` likeliest guesses."""
        return best_first(self._match, self._followers, most)

    def _followers(self, place: _Place) -> list[tuple[Guess, _Place]]:
        """What followed a run: the latest whatever its share, others where they were frequent."""
        # Past the end of a text it goes on as shorter runs do.
        state, length = self._runs.followed(*place)
        if not length:
            return []
        found = list(self._runs.followers(state))
        # As in prediction by partial matching, something that never followed counts once.
        total = 1 + sum(times for _, times, _ in found)
        last = max(when for _, _, when in found)
        nodes = []
        for token, times, when in found:
            if when == last or times >= _OFFERED * total:
                kind, chance = _standing(self._match.length, times / total, when == last)
                reached = _Place(*self._runs.follow(state, length, token))
                nodes.append((Guess(token, self._first_kind + kind, chance), reached))
        return nodes


def _standing(match: int, share: float, latest: bool) -> tuple[int, float]:
    """The kind of a guess, and how likely it is, by the length of the match and its share of what followed."""
    length = min(match, _KINDS)
    if latest and share >= _HALF:
        chance = chance_of_match(length)
        if share < _MOST:
            return _ONCE + length - 1, chance
        return _SURE + length - 1, 1 - _DOUBT * (1 - chance)
    if share >= _HALF:
        return _USUAL, share
    kind = _SELDOM if latest else _RIVAL
    return kind, _CHANCES[kind]
