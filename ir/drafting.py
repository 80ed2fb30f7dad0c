"""Guesses of what follows a text, who makes them, and the models they are made with.

``passes.speculate`` has drafters; ``runtime`` asks them, checks what they guess, and runs their models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from .program import Program
from .stepping import Stepping


@dataclass(frozen=True)
class Draft:
    """A chain of guesses; several that begin alike are a tree.

    Attributes:
        tokens: what may follow, the next token first.
        kinds: how each guess came about; those of one kind are right about as often as each other.
        chances: how likely each is if those before it are right, as long as nothing is known of its kind.
        probed: whether they follow from prompt tokens, which are worth what comes of such guesses.
    """

    tokens: list[int]
    kinds: list[int]
    chances: list[float]
    probed: bool = False

    @classmethod
    def of_kind(cls, tokens: list[int], kind: int, chance: float) -> Draft:
        """A chain that came about as a whole."""
        return cls(tokens, [kind] * len(tokens), [chance] * len(tokens))


class Outlook(Protocol):
    """How the tokens will be chosen that are to be guessed, and what a guess is worth.

    Attributes:
        plain: seconds of a step that checks nothing; 0 where nobody has measured it.
    """

    @property
    def plain(self) -> float: ...

    def choose(self, ahead: Sequence[int], logits: Tensor) -> int:
        """What would be chosen behind the text and ``ahead`` if the model said ``logits [vocabulary]``.

        Draws come from noise that is known beforehand, so that models that agree draw alike.
        """

    def noisy(self, ahead: int, tokens: Sequence[int], scores: Sequence[float]) -> list[float]:
        """Scores by which a draw, so many tokens ahead, would choose among tokens whose logits are ``scores``."""

    def worth(self, draft: Draft, seconds: float) -> bool:
        """Whether to spend ``seconds`` on a guess that counts if all of ``draft`` is right."""


class Greedily:
    """Where the likeliest token is chosen, and guesses cost nothing."""

    plain = 0.0

    def choose(self, ahead: Sequence[int], logits: Tensor) -> int:
        return int(logits.argmax())

    def noisy(self, ahead: int, tokens: Sequence[int], scores: Sequence[float]) -> list[float]:
        return list(scores)

    def worth(self, draft: Draft, seconds: float) -> bool:
        return True


GREEDILY: Outlook = Greedily()


@dataclass(frozen=True)
class DraftModel:
    """A Program that is run in steps to guess what another would say.

    Attributes:
        cache: whose states it reads and writes: empty for those of the model that checks, of which it has some by
            their names; else a cache of its own, which is shared with models that name the same one.
    """

    program: Program
    cache: str = ""


class Guessing(Protocol):
    """What says, of one text, what may follow."""

    @property
    def longest(self) -> int | None:
        """How many tokens a text may have; None where nothing bounds them."""

    @property
    def seconds(self) -> float:
        """What a guess is expected to take; 0 where nobody knows."""

    def unread(self, text: Sequence[int]) -> int:
        """How many tokens of a text it would have to read before it says anything."""

    def start(self, text: Sequence[int], most: int, keep: bool = True) -> Tensor:
        """Logits ``[vocabulary]`` behind a text; what its cache does not hold of it yet, is read first.

        Args:
            most: how often :meth:`next` may follow, and one.
            keep: whether the cache may hold on to what was computed of guesses that turned out right.
        """

    def next(self, token: int) -> Tensor:
        """Logits behind one more token, which may turn out wrong."""


class DraftRow(Guessing, Protocol):
    """A draft model over the tokens of one text."""

    @property
    def stepping(self) -> Stepping:
        """What drives the model."""

    def check(self, tokens: Sequence[int]) -> Tensor:
        """Logits ``[tokens, vocabulary]`` behind each of several more tokens, which may turn out wrong."""

    def take_back(self, count: int) -> None:
        """Forget the last ``count`` tokens since :meth:`start`."""

    def results(self, token: int) -> Mapping[str, Tensor]:
        """All outputs but states behind the text and its last ``token``, by their names."""

    def states(self) -> Mapping[str, Tensor]:
        """What the cache holds of the text but its last token: ``[heads, filled, width]`` by the names of inputs."""

    def hold(self, text: Sequence[int], states: Mapping[str, Tensor]) -> None:
        """Let a cache of its own hold ``states`` for ``text``: those of all of its tokens, or of some."""


Rows = Mapping[str, DraftRow]
NO_ROWS: Rows = MappingProxyType({})


class Drafting(ABC):
    """A drafter at work on one sequence.

    It is told every token once, in order, and asked before a step what may follow them.
    """

    @abstractmethod
    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that have been added to the sequence, those of the prompt first."""

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:  # noqa: B027
        """What the model said, ``[tokens, vocabulary]``, behind tokens that it was given, be they right or wrong."""

    def probed(self, logits: Tensor) -> None:  # noqa: B027
        """What the model said, ``[probes, vocabulary]``, behind its prompt tokens at the end of the text.

        Told once a step, last; there may be none.  The first stood in the place of the last token, so that what is
        said behind it is a guess of the next one.
        """

    @abstractmethod
    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        """Chains of at most ``most`` guesses of what follows, of which those are checked that promise most."""
