"""Repeats in a sequence, against a brute force."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tersor.ir.repeats import longest_repeat


def saved_by_brute_force(keys: list[int], shortest: int) -> int:
    best = 0
    for start in range(len(keys)):
        for period in range(shortest, (len(keys) - start) // 2 + 1):
            copies = 1
            while (
                keys[start : start + period] == keys[start + copies * period : start + (copies + 1) * period]
            ):
                copies += 1
            best = max(best, (copies - 1) * period)
    return best


@given(st.lists(st.integers(0, 2), max_size=24), st.integers(1, 3))
def test_the_repeat_that_saves_most_is_found(keys: list[int], shortest: int) -> None:
    found = longest_repeat(
        keys, lambda i, period: keys[i] == keys[i + period], start=0, stop=len(keys), shortest=shortest
    )
    expected = saved_by_brute_force(keys, shortest)
    if found is None:
        assert expected == 0
        return
    repeat, slack = found
    copy = keys[repeat.start : repeat.start + repeat.period]
    assert keys[repeat.start : repeat.stop] == copy * repeat.count
    assert (repeat.count - 1) * repeat.period == expected
    later = repeat.start + slack
    assert keys[later : later + repeat.period] * repeat.count == keys[later : repeat.stop + slack]
