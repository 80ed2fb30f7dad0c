"""Runs of consecutive tokens, their ends counted from either end of a sequence whose length may be unknown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Boundary:
    """Between two tokens: how many there are to the one end of the sequence."""

    count: int
    from_end: bool = False

    def moved(self, tokens: int) -> Boundary:
        return replace(self, count=max(0, self.count - tokens if self.from_end else self.count + tokens))


@dataclass(frozen=True)
class Run:
    """Consecutive tokens of a sequence; ``total`` is how many the sequence has, where that is a number."""

    start: Boundary
    stop: Boundary
    total: int | None

    @classmethod
    def whole(cls, size: Any) -> Run:
        if isinstance(size, int):
            return cls(Boundary(0), Boundary(size), size)
        return cls(Boundary(0), Boundary(0, from_end=True), None)

    def before(self, position: Any, size: Any) -> Boundary | None:
        """The boundary before entry ``position`` (a sympy number) of the ``size`` entries; None where not known."""
        if position.is_Integer:
            return self.start.moved(int(position))
        behind = position - size
        return self.stop.moved(int(behind)) if behind.is_Integer and behind <= 0 else None

    def is_one(self) -> bool:
        return self.start.from_end == self.stop.from_end and self.start.moved(1) == self.stop

    def around(self) -> tuple[int, int] | None:
        """How many tokens at each end to keep, for the run parts the sequence into kinds: all but the longest.

        None where the run's ends are counted from opposite ends and may lie either way.
        """
        if self.total is not None:
            cuts = (0, self.start.count, self.stop.count, self.total)
            free = max(range(3), key=lambda i: (cuts[i + 1] - cuts[i], i))
            return cuts[free], self.total - cuts[free + 1]
        if self.start.from_end:
            return (0, self.start.count) if self.stop.from_end else None
        return (self.start.count, self.stop.count) if self.stop.from_end else (self.stop.count, 0)

    def only(self) -> tuple[int, int]:
        """The same for a run of one token, which is to be kept itself."""
        if self.start.from_end:
            return 0, self.start.count
        ahead = self.start.count + 1
        behind = self.total - self.start.count if self.total is not None else ahead
        return (ahead, 0) if ahead <= behind else (0, behind)
