"""Who guesses the tokens that the model then checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ..contract import Method


@dataclass(frozen=True)
class Draft:
    """A chain of guesses.

    Attributes:
        tokens: what may follow, the next token first.
        kind: how the guess came about; guesses of one kind are right about as often as each other.
    """

    tokens: list[int]
    kind: int = 0


class Drafting(ABC):
    """A drafter at work on one sequence.

    It is told every token once, in order, and asked before a step what may follow them.
    """

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that have been added to the sequence, those of the prompt first."""

    @abstractmethod
    def draft(self, most: int) -> list[Draft]:
        """Chains of at most ``most`` guesses of what follows, of which one is checked; none with nothing to go by."""


@dataclass(frozen=True)
class Drafter(Method):
    """Base of the drafters; fills the slot of ``speculate``.  Guesses change how fast tokens come, never which."""

    @abstractmethod
    def begin(self) -> Drafting:
        """Start on a new sequence."""
