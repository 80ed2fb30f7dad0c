"""Paired timing: the ratio is that of the work done, alternation is real, the spread is a confidence interval."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest

from tersor.runtime import paired
from tersor.runtime.paired import time_pair


class Clock:
    """A clock that only work moves; the machine may slow down as time goes by."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.order = 0.0, ""
        monkeypatch.setattr(paired, "perf_counter", lambda: self.now)

    def work(self, name: str, seconds: float, drift: float = 0.0):
        def call() -> None:
            self.order += name
            self.now += seconds * (1 + drift * self.now)

        return call

    def script(self, *seconds: float):
        """Work whose calls take these times, one after the other."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_the_ratio_is_that_of_the_work(clock: Clock) -> None:
    timing = time_pair(clock.work("a", 0.02), clock.work("b", 0.01), pairs=9)
    assert timing.before == pytest.approx(0.02)
    assert timing.after == pytest.approx(0.01)
    assert [timing.ratio, timing.low, timing.high] == pytest.approx([0.5] * 3)
    assert timing.pairs == 9


def test_a_machine_that_slows_down_leaves_equal_work_equal(clock: Clock) -> None:
    timing = time_pair(clock.work("a", 0.01, drift=3.0), clock.work("b", 0.01, drift=3.0), pairs=20)
    assert timing.after > 0.02, "the drift is there"
    assert timing.low <= 1.0 <= timing.high
    assert timing.ratio == pytest.approx(1.0, abs=0.02)


def test_sides_take_turns_in_going_first(clock: Clock) -> None:
    time_pair(clock.work("a", 0.01), clock.work("b", 0.01), pairs=4, warmup=1)
    assert clock.order == "ab" + "ab" + "abbaabba"


def test_short_calls_are_timed_several_at_a_time(clock: Clock) -> None:
    timing = time_pair(clock.work("a", 1e-4), clock.work("b", 5e-5), pairs=1, warmup=0)
    assert clock.order.count("a") == clock.order.count("b") == 1 + 40
    assert timing.ratio == pytest.approx(0.5)


def test_a_time_limit_stops_early_but_not_before_three_pairs(clock: Clock) -> None:
    assert time_pair(clock.work("a", 1.0), clock.work("b", 1.0), pairs=50, seconds=0.5).pairs == 3


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    source = random.Random(1)
    draws = [sorted(NormalDist().inv_cdf(source.random()) for _ in range(15)) for _ in range(2000)]
    intervals = [paired._median_interval(ordered) for ordered in draws]
    held = sum(low <= 0.0 <= high for low, high in intervals) / len(intervals)
    assert 0.94 < held < 0.99


# Both ends of the exact 95% interval of a median, as places from 1, in the tables of order statistics.
TABLE = {
    1: (1, 1),
    5: (1, 5),
    6: (1, 6),
    8: (1, 8),
    9: (2, 8),
    13: (3, 11),
    16: (4, 13),
    17: (5, 13),
    40: (14, 27),
}


@pytest.mark.parametrize("pairs", TABLE)
def test_the_interval_is_that_of_the_tables(pairs: int) -> None:
    assert paired._median_interval(range(1, pairs + 1)) == TABLE[pairs]


@pytest.mark.parametrize("pairs", range(6, 60))
def test_the_interval_is_the_narrowest_that_is_right_in_95_of_100_cases(pairs: int) -> None:
    low, high = paired._median_interval(range(1, pairs + 1))
    assert low + high == pairs + 1

    def held(rank: int) -> float:
        """How often the median lies between the values of this rank from either end."""
        return sum(math.comb(pairs, below) for below in range(rank, pairs - rank + 1)) / 2**pairs

    assert held(low) >= 0.95 > held(low + 1)


def test_the_ratio_is_the_median_of_the_pairs_ratios_and_not_that_of_the_medians(clock: Clock) -> None:
    # The first time of each side is that of the trial call that finds how many make a sample.
    before, after = clock.script(1.0, 1.0, 10.0, 100.0), clock.script(1.0, 2.0, 5.0, 300.0)
    timing = time_pair(before, after, pairs=3, warmup=0)
    assert (timing.before, timing.after) == pytest.approx((10.0, 5.0))
    assert timing.ratio == pytest.approx(2.0), "of 2, 0.5 and 3"
    assert (timing.low, timing.high) == pytest.approx((0.5, 3.0))


@pytest.mark.parametrize(("pairs", "warmup"), [(0, 1), (3, -1)])
def test_senseless_counts_are_refused(pairs: int, warmup: int) -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        time_pair(lambda: None, lambda: None, pairs=pairs, warmup=warmup)
