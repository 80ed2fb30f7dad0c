"""The selection kernel keeps the same tokens as ``tersor.select_tokens``, to the tie, and norms what it gathers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_places import examples
from torch import Tensor

from tersor.codegen.triton.kernels import KERNELS

pytestmark = pytest.mark.usefixtures("_operands_where_kernels_run")
KERNEL = KERNELS["select_gather_norm"]
TIES = (0.0, -0.0, 0.5, 0.5, -1.0, 2.0)
# No subnormal numbers: whether they count as zero is the processor's setting, which torch and numpy do not share.
SPECIAL = (*TIES, float("inf"), float("-inf"), float("nan"), 2e-38, -2e-38)


@st.composite
def selections(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, dict[str, int]]:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    batch, tokens = draw(st.integers(1, 2)), draw(st.integers(1, 40))
    pool = torch.tensor(draw(st.sampled_from([TIES, SPECIAL])))
    scores = (
        pool[torch.randint(len(pool), (batch, tokens))] if draw(st.booleans()) else torch.randn(batch, tokens)
    )
    scores = scores.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    padding = (
        torch.rand(batch, tokens) > draw(st.sampled_from([0.0, 0.4, 1.0])) if draw(st.booleans()) else None
    )
    options = {
        "keep_per_mille": draw(st.integers(1, 1000)),
        "prefix": draw(st.integers(0, 3)),
        "last": draw(st.integers(0, 2)),
    }
    return scores, padding, options


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(selections())
def test_the_kept_tokens_are_those_of_the_operator(case: Any) -> None:
    scores, padding, options = case
    x = torch.randn(scores.shape[0], scores.shape[1], 3)
    index, gathered, normed = KERNEL.launch(x, scores, padding, **options)
    want = torch.ops.tersor.select_tokens(scores, padding, **options)
    assert torch.equal(index, want)
    assert torch.equal(gathered, torch.ops.tersor.gather_tokens(x, want, 1))
    assert normed is None


@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    selections(),
    st.sampled_from(["layer", "rms"]),
    st.integers(1, 37),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
)
def test_gathered_rows_are_normed(
    case: Any, norm: str, channels: int, dtype: torch.dtype, flags: tuple[bool, ...]
) -> None:
    scores, padding, options = case
    chosen, shared, weighted, biased = flags
    x = torch.randn(1 if shared else scores.shape[0], scores.shape[1], channels).to(dtype)
    weight = torch.randn(channels).to(dtype) if weighted else None
    bias = torch.randn(channels).to(dtype) if biased and norm == "layer" else None
    if chosen:
        index = torch.ops.tersor.select_tokens(scores, padding, **options)
        arguments: tuple[Any, ...] = (x, None, None, index, weight, bias)
    else:
        arguments = (x, scores, padding, None, weight, bias)
    options = {**options, "norm": norm, "epsilon": 1e-5, "gather": biased}
    got, want = KERNEL.launch(*arguments, **options), KERNEL.reference(*arguments, **options)
    assert torch.equal(got[0], want[0])
    assert (got[1] is None) == (not biased)
    if biased:
        assert torch.equal(got[1], want[1])
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(got[2], want[2], atol=tolerance, rtol=tolerance)


def test_strided_operands_are_read_where_they_lie() -> None:
    x = torch.randn(2, 6, 9).transpose(1, 2)
    scores = torch.randn(9, 2).transpose(0, 1)
    got = KERNEL.launch(x, scores, keep_per_mille=500, norm="layer", epsilon=1e-5)
    want = KERNEL.reference(x, scores, keep_per_mille=500, norm="layer", epsilon=1e-5)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[2], want[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": torch.randn(1, 4, 3, dtype=torch.float64)}, "float64"),
        ({"x": torch.randn(1, 4, 3, 2)}, "4 dims"),
        ({"x": torch.empty(1, 1, 20_000)}, "20000 channels"),
        ({"scores": torch.empty(1, 20_000)}, "20000 tokens"),
        ({"scores": torch.empty(1, 4, dtype=torch.float64)}, "scores"),
        ({"norm_dtype": torch.float64}, "norm's result"),
    ],
)
def test_the_guard_says_what_the_kernel_does_not_take(change: dict[str, Any], reason: str) -> None:
    given = {"x": torch.randn(1, 4, 3), "scores": torch.randn(1, 4), **change}
    assert reason in (KERNEL.guard(**given) or "")
