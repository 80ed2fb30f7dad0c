"""Guessing with models: one token after another, for as long as that is worth its time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from time import perf_counter

from tersor.ir.drafting import GREEDILY, NO_ROWS, Draft, Drafting, Guessing, Outlook, Rows

from .drafter import Drafter, confidence

# Guesses of which the model is as sure, in tenths, are of one kind.
_KINDS = 10
# A step of a model must be worth so many times what it takes: what is known of both is measured, and noisy.
_CLEARLY = 1.25
# From so many tokens on, how long they took to read tells how long others take.
_TELLS = 16
# A model may have cost, on balance, this share of the time without it and the time of so many of its steps.
_MAY_LOSE, _CREDIT = 0.01, 1.0
_NOTHING = Draft([], [], [])
# What is known of a model loses this share of its weight with every draft of it.
_FORGET = 0.1
# What other texts showed of a model counts in a text as so many drafts.
_TEXTS_WEIGHT = 4.0


@dataclass
class Tally:
    """How many drafts there were of late, and how many of their guesses were right."""

    drafts: float = 0.0
    right: float = 0.0

    def learn(self, right: int) -> None:
        """One draft more."""
        self.drafts += 1 - _FORGET * self.drafts
        self.right += right - _FORGET * self.right

    def mean(self, thought: float, weight: float) -> float:
        """Right guesses of a draft, where ``thought`` is what was thought of it and counts as so many drafts."""
        return (self.right + thought * weight) / (self.drafts + weight)


@dataclass
class Balance:
    """What came of the guesses of one model, over all texts.

    Attributes:
        seconds: of one of its steps, on average.
        tally: of its drafts.
        lost: seconds that its last drafts took, less those that right guesses saved.
        reading: seconds that it takes to read a token of a text.
        works: whether it makes numbers; else what it guesses is nothing to go by.
    """

    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    lost: float = 0.0
    reading: float = 0.0
    works: bool = True

    @property
    def credit(self) -> float:
        """Seconds that a text may lose to it before anything was won."""
        return _CREDIT * self.seconds

    def learn(self, steps: int, seconds: float, right: int) -> None:
        """One draft of so many steps."""
        each = seconds / steps
        self.seconds = each if not self.seconds else self.seconds + _FORGET * (each - self.seconds)
        self.tally.learn(right)

    def rate(self, here: Tally, plain: float) -> float:
        """Tokens a second of a text with such a tally, if it goes on as before."""
        right = here.mean(self.tally.mean(1.0, 1.0), _TEXTS_WEIGHT)
        seconds = plain + (1 + right) * self.seconds
        return (1 + right) / seconds if seconds else float("inf")


@dataclass(frozen=True)
class ModelDrafter(Drafter):
    """Base of the drafters that guess with models: with the one that pays most, by what this text and others showed."""

    @cached_property
    def _balances(self) -> defaultdict[str, Balance]:
        return defaultdict(Balance)

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        return ModelDrafting(rows, self._balances)


def check_exits(exits: Sequence[int]) -> None:
    """Raises ValueError where an exit is after no layer, or named twice."""
    if any(layer < 1 for layer in exits):
        raise ValueError(f"exits={'+'.join(map(str, exits))}: an exit is after 1 layer or more")
    if len(set(exits)) < len(exits):
        raise ValueError(f"exits={'+'.join(map(str, exits))} names an exit twice")


class ModelDrafting(Drafting):
    """Guesses by the model that gives this text most tokens a second; rests where plain steps give more."""

    def __init__(self, rows: Mapping[str, Guessing], balances: Mapping[str, Balance]) -> None:
        """At work with one of several models, in the order of ``rows``; ``balances`` are shared by texts."""
        self._rows, self._balances = rows, balances
        self._text: list[int] = []
        self._spent = 0.0
        self._lost: dict[str, float] = {}
        self._tallies = {name: Tally() for name in rows}
        self._open: _Open | None = None

    def extend(self, tokens: Sequence[int]) -> None:
        self._text += tokens

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        self._settle(outlook)
        self._spent += outlook.plain
        for one, row in self._rows.items() if outlook.plain else ():
            self._balances[one].seconds = self._balances[one].seconds or row.seconds
        name = self._best(outlook)
        if name is None:
            return []
        balance, row = self._balances[name], self._rows[name]
        if row.longest is not None:
            most = min(most, row.longest - len(self._text))
        if most < 1:
            return []
        started = perf_counter()
        kinds = list(self._rows).index(name) * _KINDS
        draft = Draft([], [], [])
        unread = row.unread(self._text)
        logits = row.start(self._text, most)
        if unread >= _TELLS:
            balance.reading = (perf_counter() - started) / unread
        slowest = balance.seconds
        while True:
            # A token may be as unlikely as -inf says.
            if not bool((logits < math.inf).all()):
                balance.works = False
                return []
            token = outlook.choose(draft.tokens, logits)
            sure = confidence(logits, token)
            draft.tokens.append(token)
            draft.kinds.append(kinds + min(int(sure * _KINDS), _KINDS - 1))
            draft.chances.append(sure)
            if len(draft.tokens) >= most or not outlook.worth(draft, slowest):
                break
            stepped = perf_counter()
            logits = row.next(token)
            # One that takes longer than it was known to must not go on for as long as it is right.
            slowest = max(slowest, perf_counter() - stepped)
        self._open = _Open(name, draft.tokens, len(self._text), perf_counter() - started)
        return [draft]

    def _best(self, outlook: Outlook) -> str | None:
        """The model to guess with; None where none may pay."""
        able = [
            name
            for name in self._rows
            if self._balances[name].works and (not outlook.plain or self._may_pay(name, outlook))
        ]
        # Of a model that never guessed nothing is known that one could go by.
        new = next((name for name in able if not self._balances[name].tally.drafts), None)
        rate = lambda name: self._balances[name].rate(self._tallies[name], outlook.plain)  # noqa: E731
        return new or max(able, key=rate, default=None)

    def _may_pay(self, name: str, outlook: Outlook) -> bool:
        """Whether it has not lost too much, and a guess that is right would save clearly more than it takes.

        A model that never can is not even begun with, which would mean to let it read all of the text; nor is one that
        has lost so far, where the text is so long that reading it takes more than it may lose.
        """
        balance = self._balances[name]
        # Texts before this one may have used up its credit, and no more: of each a model may be right anew.
        lost = self._lost.setdefault(name, min(balance.lost, balance.credit))
        most = _MAY_LOSE * self._spent + balance.credit
        reading = balance.reading * self._rows[name].unread(self._text) if balance.lost else 0.0
        return max(lost, reading) <= most and outlook.worth(_NOTHING, _CLEARLY * balance.seconds)

    def _settle(self, outlook: Outlook) -> None:
        """Learn what came of the last draft."""
        if self._open is None:
            return
        both = zip(self._open.guesses, self._text[self._open.place :], strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        name = self._open.model
        balance = self._balances[name]
        balance.learn(len(self._open.guesses), self._open.seconds, right)
        self._tallies[name].learn(right)
        lost = self._lost.get(name, 0.0) + self._open.seconds - right * outlook.plain
        balance.lost = self._lost[name] = max(0.0, lost)
        self._open = None


@dataclass(frozen=True)
class _Open:
    """A draft of which it is not known yet what came of it."""

    model: str
    guesses: list[int]
    place: int
    seconds: float
