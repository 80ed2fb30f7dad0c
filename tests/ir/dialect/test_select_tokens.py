"""select_tokens, gather_tokens and scatter_tokens against NumPy written from their descriptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tersor.ir.dialect import DIALECT

tersor = torch.ops.tersor
SPECIAL = (math.inf, -math.inf, math.nan, -0.0, float(np.finfo(np.float32).max))


@st.composite
def rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, infinities and NaN, and padding anywhere but for one token a row."""
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    values = st.integers(-3, 3) | st.sampled_from(SPECIAL)
    scores = draw(st.lists(values, min_size=batch * tokens, max_size=batch * tokens))
    padding = np.array(draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens)))
    padding = padding.reshape(batch, tokens)
    padding[:, draw(st.integers(0, tokens - 1))] = True
    return np.array(scores, dtype=np.float32).reshape(batch, tokens), padding


def kept_count(tokens: int, fixed: int, keep_per_mille: int) -> int:
    return fixed + math.ceil((tokens - fixed) * keep_per_mille / 1000 - 1e-9)


def finite(score: float) -> float:
    """Infinities as the largest number of their sign, NaN as the lowest."""
    most = float(np.finfo(np.float32).max)
    return -most if math.isnan(score) else min(max(float(score), -most), most)


def alone(scores: np.ndarray, keep: int, prefix: int, last: int) -> set[int]:
    """Positions kept of one row without padding, one by one: the protected, then the best, the earlier of equals."""
    n = len(scores)
    protected = {i for i in range(n) if i < prefix or i >= n - last}
    budget = min(n, kept_count(max(n, prefix + last), prefix + last, keep))
    by_score = sorted((i for i in range(n) if i not in protected), key=lambda i: (-finite(scores[i]), i))
    return set((sorted(protected) + by_score)[:budget])


SETTINGS = dict(data=rows(), keep=st.integers(1, 1000), prefix=st.integers(0, 2), last=st.integers(0, 2))


@given(**SETTINGS)
@settings(max_examples=150, deadline=None)
def test_every_row_of_a_padded_batch_keeps_what_it_would_keep_alone(
    data: tuple[np.ndarray, np.ndarray], keep: int, prefix: int, last: int
) -> None:
    scores, padding = data
    assume(scores.shape[1] >= prefix + last)  # shorter inputs are out of the rewritten program's range
    index = tersor.select_tokens(
        torch.from_numpy(scores), torch.from_numpy(padding), keep_per_mille=keep, prefix=prefix, last=last
    ).numpy()
    for row, (score, real) in enumerate(zip(scores, padding, strict=True)):
        positions = np.flatnonzero(real)
        expected = {int(positions[i]) for i in alone(score[real], keep, prefix, last)}
        kept = index[row].tolist()
        assert kept == sorted(set(kept)), "ascending, no position twice"
        assert {i for i in kept if real[i]} == expected, "the filler is padding"


@pytest.mark.parametrize("worst", [-math.inf, math.nan])
@pytest.mark.parametrize("left", [False, True])
def test_a_real_token_outranks_padding_whatever_its_score(worst: float, left: bool) -> None:
    real = torch.tensor([[False, False, True, True, True, True]])
    scores = torch.tensor([[9.0, 9.0, worst, 1.0, worst, worst]])
    if not left:
        real, scores = real.flip(1), scores.flip(1)
    index = tersor.select_tokens(scores, real, keep_per_mille=500)
    first = 2 if left else 0
    best = 3 if left else 2
    assert index[0][real[0, index[0]]].tolist() == sorted({first, best})


@pytest.mark.parametrize("best", [math.inf, math.nan])
def test_a_protected_token_outranks_any_score(best: float) -> None:
    scores = torch.tensor([[best, best, best, 0.0]])
    assert tersor.select_tokens(scores, keep_per_mille=300, last=1).tolist() == [[0, 3]]


@given(**SETTINGS)
@settings(max_examples=80, deadline=None)
def test_the_declared_shape_is_the_computed_one(
    data: tuple[np.ndarray, np.ndarray], keep: int, prefix: int, last: int
) -> None:
    scores, padding = (torch.from_numpy(x) for x in data)
    assume(scores.shape[1] >= prefix + last)
    options = dict(keep_per_mille=keep, prefix=prefix, last=last)
    assert (
        tersor.select_tokens(scores, padding, **options).shape
        == tersor.select_tokens(scores.to("meta"), padding.to("meta"), **options).shape
    )


@given(data=rows(), keep=st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_scatter_after_gather_gives_the_value_back(data: tuple[np.ndarray, np.ndarray], keep: int) -> None:
    scores, padding = (torch.from_numpy(x) for x in data)
    index = tersor.select_tokens(scores, padding, keep_per_mille=keep)
    x = torch.randn(*scores.shape, 3)
    assert torch.equal(tersor.scatter_tokens(x, index, tersor.gather_tokens(x, index, 1)), x)
    base = torch.full_like(x, 7.0)
    restored = tersor.scatter_tokens(base, index, tersor.gather_tokens(x, index, 1))
    stays = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(stays, index.numpy(), True, axis=1)
    assert np.array_equal(restored.numpy(), np.where(stays[:, :, None], x.numpy(), 7.0))


@pytest.mark.parametrize(
    ("shape", "dim"), [((2, 5, 3), 1), ((1, 4, 5, 3), 2), ((2, 4, 5, 5), 3), ((1, 5), 1)]
)
def test_gather_takes_each_rows_own_tokens_along_any_dim(shape: tuple[int, ...], dim: int) -> None:
    x, index = torch.randn(shape), torch.tensor([[0, 2, 3], [1, 2, 4]])
    got = tersor.gather_tokens(x, index, dim).numpy()
    for row in range(2):
        own = np.broadcast_to(x.numpy(), (2, *shape[1:]))[row]
        assert np.array_equal(got[row], own.take(index[row].numpy(), axis=dim - 1))


def test_half_precision_keeps_its_type() -> None:
    x, index = torch.randn(1, 4, 2, dtype=torch.bfloat16), torch.tensor([[0, 2]])
    assert tersor.gather_tokens(x, index, 1).dtype == torch.bfloat16


def test_the_verifier_learns_what_is_malformed() -> None:
    check = DIALECT["select_tokens"].check
    assert check is not None
    assert "3 dims" in (check(torch.zeros(1, 2, 3), keep_per_mille=500) or "")
    assert "outside" in (check(torch.zeros(1, 2), keep_per_mille=0) or "")
    check = DIALECT["gather_tokens"].check
    assert check is not None
    assert "token dim 0" in (check(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64), 0) or "")
