"""How long a step of several tokens takes on this machine, measured once."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import median
from typing import Any

WIDTHS = (1, 2, 3, 5, 9, 17, 33, 65)
_RUNS = 5


@dataclass(frozen=True)
class CostCurve:
    """Seconds of a step by the number of its tokens.

    Attributes:
        widths: ascending, from 1.  seconds: of each.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    @staticmethod
    def measured(step: Callable[[int], object], widths: Sequence[int] = WIDTHS) -> CostCurve:
        """The median of a few runs of every width, in turns; what runs first warms up the others.

        What counts is how they compare, and the shortest run of one may have been lucky where none of another was.
        """
        runs: dict[int, list[float]] = {width: [] for width in widths}
        for width in widths:
            step(width)
        for _ in range(_RUNS):
            for width in widths:
                start = time.perf_counter()
                step(width)
                runs[width].append(time.perf_counter() - start)
        # A wider step does more: where one seems faster, the machine was busy with something else.
        rising, seconds = 0.0, []
        for width in widths:
            rising = max(rising, median(runs[width]))
            seconds.append(rising)
        return CostCurve(tuple(widths), tuple(seconds))

    def to_json(self) -> dict[str, Any]:
        return {"widths": list(self.widths), "seconds": list(self.seconds)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CostCurve:
        """What :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        widths, seconds = tuple(map(int, data["widths"])), tuple(map(float, data["seconds"]))
        rising = all(a < b for a, b in pairwise(widths)) and all(a <= b for a, b in pairwise(seconds))
        if len(widths) != len(seconds) or widths[:1] != (1,) or not rising or not 0 < seconds[0] < inf:
            raise ValueError("no curve of costs")
        return cls(widths, seconds)

    def of(self, width: int) -> float:
        """Seconds of a step of ``width`` tokens, between those measured in proportion."""
        place = bisect_left(self.widths, width)
        if place == len(self.widths):
            return self.seconds[-1] * width / self.widths[-1]
        if self.widths[place] == width:
            return self.seconds[place]
        low, high = self.widths[place - 1], self.widths[place]
        share = (width - low) / (high - low)
        return self.seconds[place - 1] * (1 - share) + self.seconds[place] * share
