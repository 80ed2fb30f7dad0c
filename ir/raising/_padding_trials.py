"""What a candidate for padding is tried with, and what a mask must show then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx

from ..dialect.attention import visible_keys

aten = torch.ops.aten

# ``operator(candidate, number)`` is true for real keys.
Reading = tuple[Any, int]
NONZERO: Reading = (aten.ne.Scalar, 0)
_OF_BOOLS: tuple[Reading, ...] = (NONZERO, (aten.eq.Scalar, 0))
_OF_INTEGERS: tuple[Reading, ...] = (
    *_OF_BOOLS,
    *((aten.gt.Scalar, 0), (aten.le.Scalar, 0)),
    *((aten.eq.Scalar, 1), (aten.ne.Scalar, 1)),
)
# Of either sign, even and odd, within a byte and past it.
_OTHER_VALUES = (2, 3, -1, 100, 1000)


def readings(candidate: fx.Node) -> tuple[Reading, ...]:
    return _OF_BOOLS if candidate.meta["val"].dtype == torch.bool else _OF_INTEGERS


def zeros_and_ones(candidate: fx.Node, batch: int, columns: int) -> Iterator[Tensor]:
    """All ones, all zeros, then each of them with the other at the end, at the start, and in between.

    Segments, products and differences show a row that holds several of both something that no padding shows.  Every row
    holds both, and others than its neighbours: code may have rows in which it ignores what they hold, and rows that
    hold all of one would not show that.
    """
    ones = torch.ones(batch, columns, dtype=torch.bool)
    row, column = torch.arange(batch)[:, None] % 3, torch.arange(columns)[None]
    behind = column <= columns // 2 + row
    before = column >= columns // 3 + 1 - row
    holes = (column - row) % 3 != 1
    alternate = (column + row) % 2 == 1
    alone = ones.clone()
    alone[-1, columns // 2 + 1 :] = False
    for value in (ones, behind, before, holes, alternate, alone):
        for values in (value, ~value):
            yield values.to(candidate.meta["val"].dtype)


@dataclass(frozen=True)
class Seen:
    """What a mask shows.

    Attributes:
        visible: bool ``[batch, rows, columns]``.
        averaged: bool ``[batch, rows]``, the rows that show nothing and hide it by finite numbers.
        finite: whether finite numbers hide anything.
    """

    visible: Tensor
    averaged: Tensor
    finite: bool


@dataclass
class Trials:
    """Numbers beside 0 and 1 that a candidate held while its mask was proved.

    Attributes:
        right: the mask showed what it shows for zeros and ones.
        senseless: the model's own code has no use for them.
    """

    right: set[int] = field(default_factory=set)
    senseless: set[int] = field(default_factory=set)

    def domain(self) -> tuple[int | None, int | None]:
        """Smallest and largest number that is proved, from 0 and 1 outwards to the first that is senseless."""
        if not self.right | self.senseless:
            return 0, 1
        proved = {0, 1, *(self.right - self.senseless)}
        below = max((n for n in self.senseless if n < 0), default=None)
        above = min((n for n in self.senseless if n > 1), default=None)
        low = None if below is None else min(n for n in proved if n > below)
        high = None if above is None else max(n for n in proved if n < above)
        return low, high


def other_integers(candidate: fx.Node, batch: int, columns: int, named: frozenset[int]) -> Iterator[Tensor]:
    """Values that hold more than zeros and ones: one number at a time, the ``named`` and their neighbours too."""
    dtype = candidate.meta["val"].dtype
    if dtype == torch.bool:
        return
    limits = torch.iinfo(dtype)
    numbers = {*_OTHER_VALUES, *(n + step for n in named for step in (-1, 0, 1))} - {0, 1}
    for number in sorted(n for n in numbers if limits.min <= n <= limits.max):
        place = (torch.arange(columns)[None] + torch.arange(batch)[:, None]) % 3
        yield torch.tensor([1, number, 0], dtype=dtype)[place]
    mixed = torch.tensor([0, 1, 2, 3, 1, 2, 0, 3], dtype=dtype)
    yield mixed[(torch.arange(columns)[None] + torch.arange(batch)[:, None]) % len(mixed)]


class Rows(Enum):
    """What is known of the rows of a mask, which stand for queries."""

    OWN = auto()  # They are the columns' tokens, each real or not as its column is.
    ALIKE = auto()  # They may be: there are as many.
    OTHER = auto()  # They all count.

    def count(self, real: Tensor | None) -> Tensor | bool:
        """The rows ``[batch, rows]`` of which something is computed that counts, with ``real [batch, columns]``."""
        if real is None or self is Rows.OTHER:
            return True
        # Where no column is real, no row is either.
        return real if self is Rows.OWN else real.any(-1, keepdim=True)


def shows(seen: Seen, real: Tensor | None, causal: bool, window: int, kind: Rows) -> bool:
    """Whether what is seen is what ``real [batch, columns]``, causality and window show.

    A row that shows nothing gives zeros in ``tersor.attention``, and an average of all values where softmax is over
    finite numbers: only in rows that do not count is one as good as the other.  Of rows that are the columns' own, that
    of a token that is not real may show nothing; and one that ought to show nothing may show everything (code that
    keeps softmax from rows of -inf).  A row that shows anything else has a meaning of its own: segments, tokens that
    only some may see.
    """
    visible = seen.visible
    if bool((seen.averaged & kind.count(real)).any()):
        return False
    rows, columns = visible.shape[-2:]
    band = visible_keys(rows, columns, visible.device, None, None, None, causal, window)
    band = torch.ones_like(visible) if band is None else band[:, 0].expand_as(visible)
    expected = band if real is None else band & real[:, None, :]
    wrong = (visible != expected).any(-1)
    if real is not None and kind is Rows.OWN:
        nothing, everything = ~visible.any(-1), visible.all(-1) | (visible == band).all(-1)
        wrong &= real | ~(nothing | (everything & ~expected.any(-1)))
    return not bool(wrong.any())
