"""attention_importance and attention_weights: what they add to attention, against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

tersor = torch.ops.tersor


def probabilities(query: np.ndarray, key: np.ndarray, visible: np.ndarray, scale: float) -> np.ndarray:
    """Softmax rows of one head, ``[queries, keys]``."""
    logits = np.where(visible, query @ key.T * scale, -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def power_iteration(start: np.ndarray, matrix: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        start = matrix.T @ start
    return start


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 30), real=st.integers(2, 7), causal=st.booleans())
@settings(max_examples=60, deadline=None)
def test_importance_is_numpy_power_iteration_and_keeps_its_sum(
    seed: int, steps: int, real: int, causal: bool
) -> None:
    random = np.random.default_rng(seed)
    query, key = (random.standard_normal((1, 2, 7, 4)) for _ in range(2))
    padding = np.arange(7)[None] < real
    start = padding / padding.sum()
    visible = padding & (np.tril(np.ones((7, 7), dtype=bool)) if causal else True)
    tensors = [torch.from_numpy(x) for x in (query, key, key)]
    output, importance = tersor.attention_importance(
        *tensors,
        torch.from_numpy(start[:, None]).float(),
        None,
        torch.from_numpy(padding),
        scale=0.5,
        causal=causal,
        iterations=steps,
    )
    plain = tersor.attention(*tensors, None, torch.from_numpy(padding), scale=0.5, causal=causal)
    assert torch.allclose(output, plain, atol=1e-6)
    for head in range(2):
        matrix = probabilities(query[0, head], key[0, head], np.broadcast_to(visible, (7, 7)), 0.5)
        assert np.allclose(importance[0, head], power_iteration(start[0], matrix, steps), atol=1e-5)
    assert np.allclose(importance.sum(-1), 1.0, atol=1e-5)
    assert np.allclose(importance[..., real:], 0.0), "padding receives nothing"


def test_a_hub_that_every_token_attends_to_ranks_first() -> None:
    query, key = torch.ones(1, 1, 6, 2), torch.zeros(1, 1, 6, 2)
    key[0, 0, 4] = 3.0
    uniform = torch.full((1, 1, 6), 1 / 6)
    _, importance = tersor.attention_importance(query, key, key, uniform, scale=1.0, iterations=20)
    assert int(importance[0, 0].argmax()) == 4
    assert float(importance[0, 0, 4]) > 0.9


def test_permuting_the_tokens_permutes_the_importance() -> None:
    query, key, value = (torch.randn(1, 3, 8, 4) for _ in range(3))
    order = torch.randperm(8)
    uniform = torch.full((1, 1, 8), 1 / 8)
    _, importance = tersor.attention_importance(query, key, value, uniform, scale=0.5, iterations=7)
    shuffled = (x[:, :, order] for x in (query, key, value))
    _, permuted = tersor.attention_importance(*shuffled, uniform, scale=0.5, iterations=7)
    assert torch.allclose(permuted, importance[:, :, order], atol=1e-6)


@pytest.mark.parametrize("options", [dict(), dict(softcap=2.0), dict(causal=True), dict(window=3)])
def test_weights_of_all_queries_times_the_values_are_the_attention(options: dict[str, Any]) -> None:
    query, key, value = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    padding = torch.ones(2, 6, dtype=torch.bool)
    padding[1, 4:] = False
    weights = tersor.attention_weights(query, key, None, padding, scale=0.3, **options)
    output = tersor.attention(query, key, value, None, padding, scale=0.3, **options)
    assert torch.allclose(weights @ value.repeat_interleave(2, dim=1), output, atol=1e-5)
    assert weights.shape == (2, 4, 6, 6)


def test_weights_of_one_row_are_that_row_of_all_weights() -> None:
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 6, 8)
    positions = torch.tensor([[0], [3]])
    own = torch.stack([query[0, :, :1], query[1, :, 3:4]])
    row = tersor.attention_weights(own, key, None, None, positions, None, scale=0.3, window=2)
    full = tersor.attention_weights(query, key, scale=0.3, window=2)
    assert torch.allclose(row[:, :, 0], torch.stack([full[0, :, 0], full[1, :, 3]]), atol=1e-6)
