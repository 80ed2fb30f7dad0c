"""What is found by blocks is what sorting finds, and what equals it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir.largest import among_largest


@given(st.integers(1, 5000), st.integers(0, 9), st.integers(0, 99), st.booleans())
def test_the_largest_and_their_equals_are_among_what_is_found(
    size: int, count: int, seed: int, equal: bool
) -> None:
    drawn = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    scores = np.round(drawn) if equal else drawn
    found = among_largest(scores, count)
    if not 0 < count <= size // 512:
        assert found is None
        return
    assert found is not None
    assert list(found) == sorted(found)
    least = np.sort(scores)[-count]
    assert set(np.flatnonzero(scores >= least)) <= set(found)
    # All that are as large as the smallest of them.
    assert set(found) == set(np.flatnonzero(scores >= scores[found].min()))


@pytest.mark.parametrize(("place", "value"), [(3, np.nan), (1550, np.nan), (3, np.inf)])
def test_where_some_are_no_numbers_all_are_looked_at(place: int, value: float) -> None:
    scores = np.arange(1600, dtype=np.float32)
    scores[place] = value
    assert among_largest(scores, 2) is None


def test_tokens_that_are_ruled_out_are_none_of_the_largest() -> None:
    scores = np.full(2048, -np.inf, np.float32)
    assert among_largest(scores, 1) is None
    scores[::100] = np.arange(21)
    assert among_largest(scores, 2) is not None
