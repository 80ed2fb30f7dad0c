"""Which layers, and how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.passes.tokens.schedule import default_layers, per_layer, tokens_seen


@given(st.lists(st.integers(0, 60), min_size=1, unique=True).map(sorted))
def test_default_layers_are_free_ones_in_order(free: list[int]) -> None:
    chosen = default_layers(free)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(free)
    assert 1 <= len(chosen) <= 3


def test_twelve_layers_are_reduced_at_a_quarter_a_half_and_three_quarters() -> None:
    assert default_layers(range(12)) == (3, 6, 9)


def test_one_share_serves_all_layers_or_each_has_its_own() -> None:
    assert per_layer([0.7], [2, 5]) == {2: 700, 5: 700}
    assert per_layer([0.7, 0.5], [2, 5]) == {2: 700, 5: 500}
    with pytest.raises(ValueError, match="2 values for 3 layers"):
        per_layer([0.7, 0.5], [1, 2, 3])


@given(
    depth=st.integers(1, 20),
    keep=st.integers(1, 1000),
    more=st.integers(0, 1000),
    sites=st.sets(st.integers(0, 19), min_size=1),
)
def test_layers_see_more_tokens_the_more_are_kept(depth: int, keep: int, more: int, sites: set[int]) -> None:
    layers = sorted(site for site in sites if site < depth)
    low, high = (tokens_seen(k, layers, depth) for k in (keep, min(1000, keep + more)))
    assert 0.0 < low <= high <= 1.0 + 1e-9
    assert tokens_seen(1000, layers, depth) == pytest.approx(1.0)


def test_halving_after_the_first_attention_of_two_layers_saves_three_eighths() -> None:
    assert tokens_seen(500, [0], 2) == pytest.approx(1 - 3 / 8)
