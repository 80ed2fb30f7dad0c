"""Compare two ways of computing the same thing: alternating runs in one process, and a ratio with its spread.

Two timings taken one after the other differ by whatever else the machine was doing.  Runs that alternate see the
same disturbances, so each pair gives one ratio, and the median of the ratios hardly moves when a run is hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

# A sample shorter than this is a loop over several calls: the clock and the call itself would be part of it.
_SHORTEST_SAMPLE = 2e-3
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedTiming:
    """The result of :func:`time_pair`.

    Attributes:
        before, after: median seconds of one call of each side.
        ratio: median over the pairs of ``after / before``; below 1 means that ``after`` is faster.
        low, high: 95% confidence interval of that median, from order statistics (no distribution is assumed); the
            smallest and largest ratio where there are fewer than six pairs.
        pairs: how many pairs were timed.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float
    pairs: int

    def to_json(self) -> dict[str, float | int]:
        return {
            "before_ms": round(self.before * 1e3, 4),
            "after_ms": round(self.after * 1e3, 4),
            "ratio": round(self.ratio, 4),
            "ratio_low": round(self.low, 4),
            "ratio_high": round(self.high, 4),
            "pairs": self.pairs,
        }

    def __str__(self) -> str:
        return (
            f"{self.before * 1e3:.3g} ms -> {self.after * 1e3:.3g} ms, ratio {self.ratio:.3f} "
            f"({self.low:.3f} to {self.high:.3f}, {self.pairs} pairs)"
        )


def time_pair(
    before: Callable[[], Any],
    after: Callable[[], Any],
    *,
    pairs: int = 15,
    warmup: int = 2,
    seconds: float | None = None,
) -> PairedTiming:
    """Time ``before`` and ``after`` in alternation and compare them.

    Args:
        pairs: how many pairs to time.
        warmup: calls of each side that are not timed.
        seconds: stop early when this much time has passed and at least three pairs are done.

    Raises:
        ValueError: ``pairs`` is below 1 or ``warmup`` below 0.
    """
    if pairs < 1 or warmup < 0:
        raise ValueError(f"pairs={pairs}, warmup={warmup}: at least one pair, and no negative warm-up")
    deadline = math.inf if seconds is None else perf_counter() + seconds
    for _ in range(warmup):
        before()
        after()
    calls = max(_calls_per_sample(before), _calls_per_sample(after))
    samples: list[tuple[float, float]] = []
    for number in range(pairs):
        # Which side goes first alternates as well: the second one of a pair finds other things in the cache.
        first, second = (before, after) if number % 2 == 0 else (after, before)
        times = _sample(first, calls), _sample(second, calls)
        samples.append(times if number % 2 == 0 else (times[1], times[0]))
        if perf_counter() > deadline and len(samples) >= 3:
            break
    ratios = sorted(b / a for a, b in samples)
    low, high = _median_interval(ratios)
    return PairedTiming(
        median(a for a, _ in samples),
        median(b for _, b in samples),
        median(ratios),
        low,
        high,
        len(samples),
    )


def _calls_per_sample(call: Callable[[], Any]) -> int:
    return max(1, math.ceil(_SHORTEST_SAMPLE / max(_sample(call, 1), 1e-7)))


def _sample(call: Callable[[], Any], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - start) / calls


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The confidence interval of the median: the k-th smallest and k-th largest of ``ordered``.

    The number of values below the true median is binomial with p = 1/2, so the k-th smallest lies above it with
    the probability of fewer than k successes.
    """
    count, below, rank = len(ordered), 0.0, 0
    for k in range(count // 2):
        below += math.comb(count, k) / 2**count
        if 2 * below > 1 - _CONFIDENCE:
            break
        rank = k
    return ordered[rank], ordered[count - 1 - rank]
