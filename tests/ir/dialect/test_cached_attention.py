"""The operator against NumPy written from its definition, for chains, trees, windows and rows of their own length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tersor.ir.dialect import DIALECT

step = DIALECT["cached_attention"].overload


def brute_force(
    query: np.ndarray,
    keys: list[np.ndarray],
    values: list[np.ndarray],
    places: list[int],
    seen: list[bool],
    place: int,
    scale: float,
    window: int,
) -> np.ndarray:
    """One query of one head over the keys that it sees."""
    chosen = [
        i
        for i, (where, visible) in enumerate(zip(places, seen, strict=True))
        if visible and (window <= 0 or place - where < window)
    ]
    logits = np.array([float(query @ keys[i]) * scale for i in chosen])
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()
    return sum(w * values[i] for w, i in zip(weights, chosen, strict=True))  # type: ignore[no-any-return]


def tree(parents: list[int]) -> tuple[Tensor, Tensor]:
    """Depths ``[1, new]`` and ancestors ``[1, new, new]`` of tokens whose parents are given, -1 for none."""
    new = len(parents)
    ancestors = torch.eye(new, dtype=torch.bool)
    depth = torch.zeros(new, dtype=torch.int64)
    for token, parent in enumerate(parents):
        if parent >= 0:
            ancestors[token] |= ancestors[parent]
            depth[token] = depth[parent] + 1
    return depth[None], ancestors[None]


@settings(max_examples=60, deadline=None)
@given(
    past=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    new=st.integers(1, 5),
    window=st.sampled_from([0, 1, 3, 50]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    shape=st.sampled_from(["chain", "tree"]),
    data=st.data(),
)
def test_it_is_attention_over_filled_slots_and_ancestors(
    past: list[int], new: int, window: int, heads: tuple[int, int], shape: str, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    batch, (query_heads, key_heads), width, capacity = len(past), heads, 4, 16
    query = torch.randn(batch, query_heads, new, width)
    key, value = torch.randn(2, batch, key_heads, new, width).unbind(0)
    past_key, past_value = torch.randn(2, batch, key_heads, capacity, width).unbind(0)
    depth = ancestors = None
    parents = list(range(-1, new - 1))
    if shape == "tree":
        parents = [data.draw(st.integers(-1, i - 1)) for i in range(new)]
        depth, ancestors = tree(parents)
    length = torch.tensor(past)
    output, present_key, present_value = step(
        query, key, value, past_key, past_value, length, depth, ancestors, scale=0.5, window=window
    )
    own_depth, own_ancestors = tree(parents)
    for row, count in enumerate(past):
        assert torch.equal(present_key[row, :, :count], past_key[row, :, :count])
        assert torch.equal(present_key[row, :, count : count + new], key[row])
        assert torch.equal(present_value[row, :, count : count + new], value[row])
        places = [*range(count), *(count + int(d) for d in own_depth[0])]
        for head in range(query_heads):
            group = head // (query_heads // key_heads)
            keys = [k.numpy() for k in (*past_key[row, group, :count], *key[row, group])]
            values = [v.numpy() for v in (*past_value[row, group, :count], *value[row, group])]
            for token in range(new):
                expected = brute_force(
                    query[row, head, token].numpy(), keys, values, places,
                    [True] * count + own_ancestors[0, token].tolist(), places[count + token], 0.5, window,
                )  # fmt: skip
                assert np.allclose(output[row, head, token].numpy(), expected, atol=1e-5)


def test_what_is_in_other_slots_is_never_seen() -> None:
    query, key, value = torch.randn(3, 1, 2, 3, 4).unbind(0)
    clean = torch.randn(2, 1, 2, 12, 4)
    dirty = clean.clone()
    dirty[:, :, :, 5 + 3 :] = 1e4
    length = torch.tensor([5])
    first, second = (step(query, key, value, *slots, length, scale=1.0)[0] for slots in (clean, dirty))
    assert torch.equal(first, second)


def test_more_tokens_than_slots_are_an_error() -> None:
    x = torch.randn(1, 1, 3, 4)
    with pytest.raises(IndexError, match="8 tokens do not fit into 7 slots"):
        step(x, x, x, *torch.zeros(2, 1, 1, 7, 4), torch.tensor([5]), scale=1.0)
