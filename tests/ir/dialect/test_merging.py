"""match_tokens and merge_tokens (ToMe): sizes, rows of different length, and proportional attention."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir.dialect import DIALECT

tersor = torch.ops.tersor


def brute_force(metric: np.ndarray, keep: int, prefix: int, last: int) -> tuple[list[int], dict[int, int]]:
    """Kept positions and, for every other one, whom it joins, of one row without padding."""
    n = len(metric)
    free = list(range(prefix, n - last))
    unit = metric / np.maximum(np.linalg.norm(metric, axis=1, keepdims=True), 1e-12)
    targets, sources = free[::2], free[1::2]
    merges = min(n, n - min(n, prefix + last + -(-(max(n, prefix + last) - prefix - last) * keep // 1000)))
    pairs = []
    for i in sources:
        similar = [float(unit[i] @ unit[j]) for j in targets]
        pairs.append((max(similar), i, targets[int(np.argmax(similar))]))
    pairs.sort(key=lambda pair: -pair[0])
    joins = {i: j for _, i, j in pairs[:merges]}
    return [i for i in range(n) if i not in joins], joins


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(4, 12))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    padding = random.random((batch, tokens)) < draw(st.sampled_from([0.6, 1.0]))
    padding[:, 0] = padding[:, -1] = padding[:, 1] = padding[:, 2] = True
    return random.standard_normal((batch, tokens, 4)).astype(np.float32), padding


@given(data=batches(), keep=st.integers(500, 1000), prefix=st.integers(0, 2), last=st.integers(0, 1))
@settings(max_examples=120, deadline=None)
def test_matching_equals_a_brute_force_over_each_rows_real_tokens(
    data: tuple[np.ndarray, np.ndarray], keep: int, prefix: int, last: int
) -> None:
    metric, padding = data
    kept, source, target, column = (
        x.numpy()
        for x in tersor.match_tokens(
            torch.from_numpy(metric), torch.from_numpy(padding), keep_per_mille=keep, prefix=prefix, last=last
        )
    )
    for row, real in enumerate(padding):
        positions = np.flatnonzero(real)
        stay, joins = brute_force(metric[row, real], keep, prefix, last)
        assert [i for i in kept[row].tolist() if real[i]] == [int(positions[i]) for i in stay]
        got = {int(s): int(kept[row, t]) for s, t in zip(source[row], target[row], strict=True) if real[s]}
        assert got == {int(positions[i]): int(positions[j]) for i, j in joins.items()}
        assert column[row, kept[row]].tolist() == list(range(kept.shape[1]))
        assert column[row, source[row]].tolist() == target[row].tolist()
        assert sorted([*kept[row], *source[row]]) == list(range(metric.shape[1])), (
            "every token stays or leaves"
        )


@given(data=batches(), keep=st.integers(500, 1000))
@settings(max_examples=60, deadline=None)
def test_sizes_keep_their_sum_and_values_their_total(data: tuple[np.ndarray, np.ndarray], keep: int) -> None:
    metric, padding = (torch.from_numpy(x) for x in data)
    size = torch.rand(padding.shape).double() * padding
    matched = tersor.match_tokens(metric, padding, keep_per_mille=keep)
    merged, sizes = tersor.merge_tokens(metric.double(), size, *matched[:3])
    assert torch.allclose(sizes.sum(1), size.sum(1))
    total = (metric.double() * size[:, :, None]).sum(1)
    assert torch.allclose((merged * sizes[:, :, None]).sum(1), total, atol=1e-5)


def test_merging_identical_tokens_leaves_proportional_attention_unchanged() -> None:
    """Two equal keys with one value each weigh as much as one key whose logit is raised by log 2."""
    query, distinct = torch.randn(1, 2, 5, 4), torch.randn(1, 3, 4)
    x = distinct[:, [0, 0, 1, 2, 2]]
    kept, source, target = torch.tensor([[0, 2, 3]]), torch.tensor([[1, 4]]), torch.tensor([[0, 2]])
    merged, size = tersor.merge_tokens(x, torch.ones(1, 5), kept, source, target)
    assert torch.equal(merged, distinct)
    heads = x[:, None].expand(1, 2, 5, 4)
    fewer = merged[:, None].expand(1, 2, 3, 4)
    full = tersor.attention(query, heads, heads, scale=0.5)
    bias = size.log()[:, None, None, :]
    assert torch.allclose(tersor.attention(query, fewer, fewer, bias, scale=0.5), full, atol=1e-6)


def test_identical_tokens_are_the_first_to_merge() -> None:
    metric = torch.randn(1, 8, 4)
    metric[0, 5] = metric[0, 2]
    _, source, target, _ = tersor.match_tokens(metric, keep_per_mille=875)
    assert (source.tolist(), target.tolist()) == ([[5]], [[2]])


def test_half_precision_stays_half_precision() -> None:
    x = torch.randn(1, 6, 4, dtype=torch.bfloat16)
    merged, sizes = tersor.merge_tokens(x, torch.ones(1, 6), *tersor.match_tokens(x, keep_per_mille=500)[:3])
    assert (merged.dtype, sizes.dtype) == (torch.bfloat16, torch.float32)


def test_the_verifier_learns_what_is_malformed() -> None:
    check = DIALECT["match_tokens"].check
    assert check is not None
    assert "at most half" in (check(torch.zeros(1, 4, 2), keep_per_mille=400) or "")
