"""Which layers, and how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.passes.tokens.schedule import default_layers, per_layer


@given(st.lists(st.integers(0, 60), min_size=1, unique=True).map(sorted))
def test_default_layers_are_free_ones_in_order(free: list[int]) -> None:
    chosen = default_layers(free)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(free)
    assert 1 <= len(chosen) <= 3


def test_the_last_layer_of_each_of_the_first_three_quarters_is_reduced() -> None:
    assert default_layers(range(12)) == (2, 5, 8)
    assert default_layers(range(6)) == (0, 2, 3)


def test_one_share_serves_all_layers_or_each_has_its_own() -> None:
    assert per_layer([0.7], [2, 5]) == {2: 700, 5: 700}
    assert per_layer([0.7, 0.5], [2, 5]) == {2: 700, 5: 500}
    with pytest.raises(ValueError, match="2 values for 3 layers"):
        per_layer([0.7, 0.5], [1, 2, 3])
