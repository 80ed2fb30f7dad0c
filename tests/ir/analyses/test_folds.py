"""An axis is found again after a reshape, with what it shares its dim with."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir.analyses.folds import place_after


@given(
    before=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    cuts=st.lists(st.booleans(), min_size=3, max_size=3),
    dim=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_a_reshape_moves_an_axis_where_its_elements_go(before: list[int], cuts: list[bool], dim: int) -> None:
    """Dims are joined at random; the axis must be found in the joined dim with its true neighbours."""
    dim %= len(before)
    after, own = [before[0]], 0
    for i, size in enumerate(before[1:], start=1):
        if cuts[i - 1]:
            after[-1] *= size
        else:
            after.append(size)
        own = len(after) - 1 if i == dim else own
    found = place_after(before, after, dim)
    assert found is not None
    place, fold = found
    values = torch.arange(before[dim]).reshape([-1 if i == dim else 1 for i in range(len(before))])
    values = values.expand(before).reshape(after)
    pattern = torch.arange(before[dim]).repeat_interleave(int(fold.inner)).repeat(int(fold.outer))
    shape = [-1 if i == place else 1 for i in range(len(after))]
    assert torch.equal(values, pattern.reshape(shape).expand(after))
    back = place_after(after, before, place, fold)
    assert back is not None
    assert before[back[0]] == before[dim] or before[dim] == 1


def test_taking_an_axis_apart_is_found() -> None:
    assert place_after([2, 6, 8], [2, 2, 3, 8], 1) is None
    assert place_after([2, 6, 8], [4, 3, 8], 1) is None
