"""The attention kernels compute what their references define."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_places import examples
from torch import Tensor

from tersor.codegen.triton.kernels import KERNELS
from tersor.ir.dialect.attention import visible_keys

pytestmark = pytest.mark.usefixtures("_operands_where_kernels_run")
ATTENTION, IMPORTANCE = KERNELS["attention"], KERNELS["attention_importance"]
# Of values around 1, in units of the dtype's rounding: the reference rounds its probabilities, the kernel does not.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 6e-3, torch.bfloat16: 5e-2}


@st.composite
def operands(draw: st.DrawFn) -> tuple[tuple[Tensor, ...], tuple[Any, ...], dict[str, Any]]:
    """(query, key, value), (mask, padding, query_positions, key_positions, sinks), keyword arguments."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    batch, kv_heads, groups = draw(st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 1)]))
    heads = kv_heads * groups
    queries, keys = draw(st.integers(1, 21)), draw(st.integers(1, 21))
    head_dim, value_dim = draw(st.sampled_from([(5, 5), (16, 16), (8, 20)]))
    query = torch.randn(batch, heads, queries, head_dim).to(dtype)
    # As models make them: heads beside tokens in memory.
    key = torch.randn(batch, keys, kv_heads, head_dim).to(dtype).transpose(1, 2)
    value = torch.randn(batch, kv_heads, keys, value_dim).to(dtype)
    kind = draw(st.sampled_from(["none", "bool", "additive", "lowest", "row"]))
    if kind == "none":
        mask = None
    elif kind == "bool":
        mask = torch.rand(1, heads, queries, keys) > 0.3
    elif kind == "row":
        mask = torch.rand(queries, keys) > 0.3
    else:
        hidden = torch.finfo(dtype).min if kind == "lowest" else float("-inf")
        mask = torch.where(torch.rand(batch, 1, queries, keys) > 0.3, torch.randn(queries, keys), hidden).to(
            dtype
        )
    padding = torch.rand(batch, keys) > 0.3 if draw(st.booleans()) else None
    query_at = torch.randint(0, 30, (1, queries)) if draw(st.booleans()) else None
    key_at = torch.randint(0, 30, (batch, keys)) if draw(st.booleans()) else None
    sinks = torch.randn(heads) if draw(st.booleans()) else None
    options = {
        "scale": 0.4,
        "causal": draw(st.booleans()),
        "window": draw(st.sampled_from([0, 0, 1, 4, 30])),
        "softcap": draw(st.sampled_from([0.0, 2.0])),
    }
    if kind == "lowest" and dtype is torch.float16:
        # Beside its lowest value float16 rounds a logit away and float32 does not: no row may be hidden so as a whole.
        visible = visible_keys(
            queries, keys, query.device, padding, query_at, key_at, options["causal"], options["window"]
        )
        shown = mask > hidden if visible is None else (mask > hidden) & visible
        mask = torch.where(shown.any(-1, keepdim=True), mask, 0.0)
    return (query, key, value), (mask, padding, query_at, key_at, sinks), options


def assert_near(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=list(HealthCheck))
@given(operands())
def test_attention_equals_its_reference(case: Any) -> None:
    tensors, optional, options = case
    assert ATTENTION.guard(*tensors, *optional, **options) is None
    got = ATTENTION.launch(*tensors, *optional, **options)
    # The definition in its plain form; SDPA, which the reference also calls, differs on rows that see nothing.
    queries = tensors[0].shape[2]
    weights = torch.zeros(1, 1, queries)
    want, _ = IMPORTANCE.reference(*tensors, weights, *optional, **options)
    assert_near(got, want, TOLERANCE[got.dtype])


@settings(max_examples=examples(30), deadline=None, suppress_health_check=list(HealthCheck))
@given(operands(), st.integers(1, 3), st.sampled_from([(1, 1), (1, None), (None, None)]))
def test_importance_equals_its_reference(case: Any, iterations: int, shape: tuple[int | None, ...]) -> None:
    (query, key, value), optional, options = case
    batch, heads, queries, _ = query.shape
    weights = torch.rand(shape[0] or batch, shape[1] or heads, queries)
    iterations = iterations if queries == key.shape[2] else 1
    got = IMPORTANCE.launch(query, key, value, weights, *optional, iterations=iterations, **options)
    want = IMPORTANCE.reference(query, key, value, weights, *optional, iterations=iterations, **options)
    assert_near(got[0], want[0], TOLERANCE[query.dtype])
    assert_near(got[1], want[1], TOLERANCE[query.dtype] * queries)


def test_attention_equals_the_operator_where_every_query_sees_a_key() -> None:
    query, key, value = torch.randn(3, 2, 4, 37, 12).unbind()
    padding = torch.arange(37)[None] < torch.tensor([[37], [20]])
    for options in ({"causal": True}, {"window": 40}, {"causal": True, "window": 5}):
        got = ATTENTION.launch(query, key, value, None, padding, scale=0.3, **options)
        want = torch.ops.tersor.attention(query, key, value, None, padding, scale=0.3, **options)
        rows = want.isfinite().all(-1) & (want != 0).any(-1)
        torch.testing.assert_close(got[rows], want[rows], atol=1e-5, rtol=1e-5)
        assert rows.float().mean() > 0.7


def test_power_iteration_keeps_the_mass_of_the_weights() -> None:
    """Rows of A sum to 1, so that importance sums to what the weights sum to, over any number of iterations."""
    query, key, value = torch.randn(3, 1, 2, 33, 8).unbind()
    weights = torch.rand(1, 2, 33)
    for iterations in (1, 4):
        _, importance = IMPORTANCE.launch(query, key, value, weights, scale=0.3, iterations=iterations)
        torch.testing.assert_close(importance.sum(-1), weights.sum(-1), atol=1e-4, rtol=1e-5)


def test_a_query_that_sees_no_key_yields_zeros_and_gives_nothing() -> None:
    query, key, value = torch.randn(3, 2, 1, 18, 4).unbind()
    padding = torch.tensor([[True], [False]]).expand(2, 18)
    output, importance = IMPORTANCE.launch(query, key, value, torch.ones(1, 1, 18), None, padding, scale=1.0)
    assert output[1].abs().max() == 0
    assert importance[1].abs().max() == 0
    assert output[0].abs().max() > 0


def test_an_empty_batch_gives_an_empty_result() -> None:
    empty = torch.randn(0, 2, 5, 4)
    output, importance = IMPORTANCE.launch(empty, empty, empty, torch.ones(1, 1, 5), scale=1.0)
    assert output.shape == (0, 2, 5, 4)
    assert importance.shape == (0, 2, 5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": torch.randn(1, 1, 3, 4, dtype=torch.float64)}, "float64"),
        ({"value": torch.randn(1, 1, 3, 4, dtype=torch.float16)}, "one dtype"),
        ({"value": torch.randn(1, 1, 3, 300)}, "head_dim 300"),
        ({"mask": torch.zeros(3, 3, dtype=torch.float64)}, "mask"),
        ({"padding": torch.ones(1, 1, 3, dtype=torch.bool)}, "padding"),
        ({"query_positions": torch.arange(3)}, "query_positions"),
        ({"sinks": torch.zeros(1, dtype=torch.float64)}, "sinks"),
    ],
)
def test_the_guard_says_what_the_kernel_does_not_take(change: dict[str, Tensor], reason: str) -> None:
    given = {name: torch.randn(1, 1, 3, 4) for name in ("query", "key", "value")} | change
    assert reason in (ATTENTION.guard(**given, scale=1.0) or "")
    assert reason in (IMPORTANCE.guard(**given, query_weights=torch.ones(1, 1, 3), scale=1.0) or "")
