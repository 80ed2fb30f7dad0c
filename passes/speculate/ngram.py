"""Prompt lookup: what followed the last tokens where they stood before (Saxena 2023, "Prompt Lookup Decoding")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from tersor.ir.drafting import GREEDILY, NO_ROWS, Draft, Drafting, Outlook, Rows

from .drafter import Drafter, chance_of_match
from .lookup import Lookup

# Runs of every length are noted with each token.
_LONGEST = 64


@dataclass(frozen=True)
class NGram(Drafter):
    """Guess what followed the last tokens where they stood before in the sequence."""

    name: ClassVar[str] = "ngram"
    reported: ClassVar[str] = "2 to 4x where the text repeats its prompt"

    longest: int = field(default=4, metadata={"help": "tokens at the end that are looked for, at most"})
    shortest: int = field(default=1, metadata={"help": "tokens at the end that are looked for, at least"})

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"shortest={self.shortest} and longest={self.longest} are no range from 1 up")
        if self.longest > _LONGEST:
            raise ValueError(
                f"longest={self.longest}: give {_LONGEST} at most; drafter=suffix looks for runs of any length"
            )

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        return _Lookup(self.shortest, self.longest)

    def as_module(self, most: int) -> nn.Module:
        return Lookup(self.shortest, self.longest, most)


class _Lookup(Drafting):
    """Remembers of every run of tokens where what follows its latest place begins."""

    def __init__(self, shortest: int, longest: int) -> None:
        self._sizes = range(shortest, longest + 1)
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            # Runs are noted when something follows them, so that the end of the sequence never finds itself.
            for size in self._sizes:
                if size <= len(self._tokens):
                    self._after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        for size in reversed(self._sizes):
            start = self._after.get(tuple(self._tokens[-size:])) if size <= len(self._tokens) else None
            if start is not None:
                return [Draft.of_kind(self._continued(start, most), size, chance_of_match(size))]
        return []

    def _continued(self, start: int, most: int) -> list[int]:
        """What follows from ``start``, and once it reaches the end, the guesses themselves."""
        guesses: list[int] = []
        for place in range(start, start + most):
            known = place < len(self._tokens)
            guesses.append(self._tokens[place] if known else guesses[place - len(self._tokens)])
        return guesses
