"""How long a step of several tokens takes on this machine, measured once."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTHS = (1, 2, 3, 5, 9, 17, 33, 65)
_RUNS = 3


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
        """The shortest of a few runs of every width, in turns; what runs first warms up the others."""
        best = dict.fromkeys(widths, float("inf"))
        for width in widths:
            step(width)
        for _ in range(_RUNS):
            for width in widths:
                start = time.perf_counter()
                step(width)
                best[width] = min(best[width], time.perf_counter() - start)
        # A wider step does more: where one seems faster, the machine was busy with something else.
        rising, seconds = 0.0, []
        for width in widths:
            rising = max(rising, best[width])
            seconds.append(rising)
        return CostCurve(tuple(widths), tuple(seconds))

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
