"""Find consecutive repeats in a sequence, such as the layers of a model in its list of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Repeat:
    """``count`` copies of ``period`` items, the first of which is item ``start``."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


def longest_repeat(
    keys: Sequence[int], equal: Callable[[int, int], bool], *, start: int, stop: int, shortest: int
) -> tuple[Repeat, int] | None:
    """The repeat within ``[start, stop)`` that leaves out most items when it is written once.

    Args:
        keys: items with different keys are different; cheap to compare.
        equal: ``equal(i, period)`` decides whether item ``i`` and item ``i + period`` are the same.
        shortest: smallest period looked for.

    Returns:
        the repeat, and how many items later it could start with as many copies; None when nothing repeats.
    """
    array = np.asarray(keys[start:stop])
    best: tuple[Repeat, int] | None = None
    saved = 0
    for period in range(shortest, len(array) // 2 + 1):
        same = np.concatenate(([False], array[:-period] == array[period:], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            if (high - low) // period * period <= saved:
                continue
            for first, last in _runs(start + int(low), start + int(high), period, equal):
                copies = (last - first) // period
                if copies * period > saved:
                    saved = copies * period
                    best = Repeat(first, period, copies + 1), (last - first) % period
    return best


def _runs(low: int, high: int, period: int, equal: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Maximal stretches of ``[low, high)`` in which every item equals the one a period later."""
    runs, first = [], low
    for i in range(low, high + 1):
        if i == high or not equal(i, period):
            if i > first:
                runs.append((first, i))
            first = i + 1
    return runs
