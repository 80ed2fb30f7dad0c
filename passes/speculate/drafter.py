"""Who guesses the tokens that the model then checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..contract import Method


@dataclass(frozen=True)
class Draft:
    """A chain of guesses; several that begin alike are a tree.

    Attributes:
        tokens: what may follow, the next token first.
        kinds: how each guess came about; those of one kind are right about as often as each other.
        chances: how likely each is if those before it are right, as long as nothing is known of its kind.
    """

    tokens: list[int]
    kinds: list[int]
    chances: list[float]

    @classmethod
    def of_kind(cls, tokens: list[int], kind: int, chance: float) -> Draft:
        """A chain that came about as a whole."""
        return cls(tokens, [kind] * len(tokens), [chance] * len(tokens))


def chance_of_match(length: int) -> float:
    """How likely what followed a run of so many tokens follows it again: measured on prose, code and lists."""
    return 1 - 0.6 * 0.7 ** (length - 1)


class Drafting(ABC):
    """A drafter at work on one sequence.

    It is told every token once, in order, and asked before a step what may follow them.
    """

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that have been added to the sequence, those of the prompt first."""

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:  # noqa: B027
        """What the model said, ``[tokens, vocabulary]``, behind tokens that it was given, be they right or wrong."""

    @abstractmethod
    def draft(self, most: int) -> list[Draft]:
        """Chains of at most ``most`` guesses of what follows, of which those are checked that promise most."""


@dataclass(frozen=True)
class Drafter(Method):
    """Base of the drafters; fills the slot of ``speculate``.  Guesses change how fast tokens come, never which."""

    @abstractmethod
    def begin(self) -> Drafting:
        """Start on a new sequence."""

    def as_module(self, most: int) -> nn.Module | None:
        """Guesses as a function of the text alone, at most ``most``; None where they follow from more than that.

        Returns:
            a module of tensor operators that ``capture`` takes: from the tokens so far, int64 ``[n]``, to guesses,
            int64 ``[most]``, the next token first, and how many of them count, int64 ``[1]``.
        """
        return None
