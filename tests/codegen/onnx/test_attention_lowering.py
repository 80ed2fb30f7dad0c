"""Attention in ONNX equals the dialect's reference, whatever decides what a query sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.codegen.onnx.export import build

from .conftest import small_program

aten = torch.ops.aten
DIMS = {
    "q": {0: "batch", 2: "queries"},
    "k": {0: "batch", 2: "keys"},
    "v": {0: "batch", 2: "keys"},
    "padding": {0: "batch", 1: "keys"},
    "mask": {0: "batch", 2: "queries", 3: "keys"},
    "positions": {0: "batch", 1: "queries"},
    "weights": {0: "batch", 2: "queries"},
}


def operands(batch: int, tokens: int, keys: int | None = None, kv_heads: int = 4) -> dict[str, Tensor]:
    keys = tokens if keys is None else keys
    return {
        "q": torch.randn(batch, 4, tokens, 8),
        "k": torch.randn(batch, kv_heads, keys, 8),
        "v": torch.randn(batch, kv_heads, keys, 8),
    }


def left_and_right(batch: int, keys: int) -> Tensor:
    """Padding on the left in row 0, on the right in the last row (the same row when there is one)."""
    padding = torch.ones(batch, keys, dtype=torch.bool)
    padding[0, : keys // 3] = False
    padding[-1, keys - 1 - keys // 4 :] = False
    return padding


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 2}], ids=str)
def test_what_stands_where_heads_are_may_vary(agree: Any, options: dict[str, Any]) -> None:
    """Of videos ``[batch, frames, tokens, channels]``, whose frames attend each within itself."""
    dims = {name: {0: "batch", 1: "frames", 2: "tokens"} for name in "qkv"}
    cases = [
        {name: torch.randn(b, f, n, 8) for name in "qkv"} for b, f, n in ((2, 3, 7), (1, 1, 1), (3, 5, 4))
    ]
    agree(lambda b, q, k, v: b.op("attention", q, k, v, scale=0.3, **options), dims, *cases)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": True, "window": 3},
        {"window": 2},
        {"softcap": 5.0},
        {"softcap": 2.0, "causal": True},
    ],
    ids=str,
)
def test_attention_without_padding(agree: Any, kv_heads: int, options: dict[str, Any]) -> None:
    cases = [operands(b, n, kv_heads=kv_heads) for b, n in ((2, 7), (1, 1), (3, 12))]
    agree(lambda b, q, k, v: b.op("attention", q, k, v, scale=0.3, **options), DIMS, *cases)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 3}], ids=str)
def test_attention_with_padding_on_either_side(agree: Any, kv_heads: int, options: dict[str, Any]) -> None:
    cases = [
        operands(b, n, kv_heads=kv_heads) | {"padding": left_and_right(b, n)}
        for b, n in ((2, 7), (1, 9), (3, 12))
    ]

    def build(b: Any, q: Any, k: Any, v: Any, padding: Any) -> Any:
        return b.op("attention", q, k, v, None, padding, scale=0.3, **options)

    agree(build, DIMS, *cases)


def test_attention_in_double_precision() -> None:
    model = nn.MultiheadAttention(16, 2, batch_first=True).double().eval()
    inputs = dict.fromkeys(("query", "key", "value"), torch.randn(2, 6, 16, dtype=torch.float64))
    fast = tersor.optimize_model(model, [], "onnx", example_inputs=inputs)
    torch.testing.assert_close(fast(**inputs)[0], model(**inputs)[0], atol=1e-13, rtol=1e-13)


def test_a_query_that_sees_no_key_yields_zeros(agree: Any) -> None:
    case = operands(2, 6) | {"padding": torch.tensor([[True] * 6, [False] * 6])}
    agree(lambda b, q, k, v, padding: b.op("attention", q, k, v, None, padding, scale=1.0), DIMS, case)


@pytest.mark.parametrize("kind", ["bool", "float", "float with -inf"])
def test_attention_with_an_explicit_mask(agree: Any, kind: str) -> None:
    def case(batch: int, tokens: int, keys: int) -> dict[str, Tensor]:
        mask = torch.rand(batch, 1, tokens, keys) > 0.4
        if kind == "float":
            return operands(batch, tokens, keys) | {"mask": torch.randn(batch, 1, tokens, keys)}
        if kind == "bool":
            return operands(batch, tokens, keys) | {"mask": mask}
        return operands(batch, tokens, keys) | {
            "mask": torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
        }

    cases = [case(2, 5, 7), case(1, 3, 3), case(3, 4, 9)]
    agree(lambda b, q, k, v, mask: b.op("attention", q, k, v, mask, scale=0.5), DIMS, *cases)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"causal": True},
        {"window": 2},
        {"softcap": 3.0},
        {"sinks": True},
        {"hidden": True},
    ],
    ids=str,
)
def test_a_bias_of_keys_alone(agree: Any, kv_heads: int, options: dict[str, Any]) -> None:
    """With -inf in it, a whole row of it, beside all that may decide what a query sees."""
    settings = {name: value for name, value in options.items() if name not in ("padding", "sinks", "hidden")}

    def case(batch: int, queries: int, keys: int) -> dict[str, Tensor]:
        mask = 3 * torch.randn(batch, 1, 1, keys)
        if options.get("hidden"):
            mask[:, :, :, :2] = float("-inf")
            mask[-1] = float("-inf")
        case = operands(batch, queries, keys, kv_heads) | {"bias": mask}
        case |= {"padding": left_and_right(batch, keys)} if options.get("padding") else {}
        return case | ({"sinks": torch.randn(4)} if options.get("sinks") else {})

    def build(b: Any, q: Any, k: Any, v: Any, bias: Any, *others: Any) -> Any:
        padding = others[0] if options.get("padding") else None
        sinks = others[0] if options.get("sinks") else None
        return b.op("attention", q, k, v, bias, padding, None, None, sinks, scale=0.3, **settings)

    dims = DIMS | {"bias": {0: "batch", 3: "keys"}}
    agree(build, dims, case(2, 7, 7), case(1, 4, 4), case(3, 12, 12))


def test_a_float_mask_joins_causality_and_padding(agree: Any) -> None:
    def build(b: Any, q: Any, k: Any, v: Any, mask: Any, padding: Any) -> Any:
        return b.op("attention", q, k, v, mask, padding, scale=0.5, causal=True)

    cases = [
        operands(b, n) | {"mask": torch.randn(b, 1, n, n), "padding": left_and_right(b, n)}
        for b, n in ((2, 7), (1, 5))
    ]
    agree(build, DIMS, *cases)


def test_positions_decide_causality_after_tokens_were_dropped(agree: Any) -> None:
    def case(batch: int, tokens: int) -> dict[str, Tensor]:
        positions = torch.stack([torch.randperm(3 * tokens)[:tokens].sort().values for _ in range(batch)])
        return operands(batch, tokens) | {"positions": positions}

    def build(b: Any, q: Any, k: Any, v: Any, positions: Any) -> Any:
        return b.op("attention", q, k, v, None, None, positions, positions, scale=0.5, causal=True, window=6)

    agree(build, DIMS, case(2, 7), case(1, 4), case(3, 10))


@pytest.mark.parametrize("causal", [False, True])
def test_sinks_take_mass_and_carry_no_value(agree: Any, causal: bool) -> None:
    cases = [operands(b, n, kv_heads=2) | {"sinks": torch.randn(4)} for b, n in ((2, 7), (1, 4))]

    def build(b: Any, q: Any, k: Any, v: Any, sinks: Any) -> Any:
        return b.op("attention", q, k, v, None, None, None, None, sinks, scale=0.5, causal=causal)

    agree(build, DIMS, *cases)


def test_heads_split_by_reshape_and_transpose_are_joined_again(agree: Any) -> None:
    def build(b: Any, x: Any) -> Any:
        batch, tokens = b.size(x, 0), b.size(x, 1)
        heads = b.call(aten.transpose.int, b.call(aten.reshape.default, x, [batch, tokens, 4, 8]), 1, 2)
        mixed = b.op("attention", heads, heads, heads, scale=0.3)
        return b.call(aten.reshape.default, b.call(aten.transpose.int, mixed, 1, 2), [batch, tokens, 32])

    agree(
        build, {"x": {0: "batch", 1: "tokens"}}, *({"x": torch.randn(b, n, 32)} for b, n in ((2, 7), (1, 3)))
    )


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_importance_is_the_weighted_sum_of_probability_rows(
    agree: Any, iterations: int, padded: bool
) -> None:
    def case(batch: int, tokens: int) -> dict[str, Tensor]:
        given = operands(batch, tokens, kv_heads=2) | {"weights": torch.rand(batch, 1, tokens)}
        return given | ({"padding": left_and_right(batch, tokens)} if padded else {})

    def build(b: Any, q: Any, k: Any, v: Any, weights: Any, padding: Any = None) -> Any:
        node = b.op(
            "attention_importance",
            q,
            k,
            v,
            weights,
            None,
            padding,
            scale=0.3,
            causal=padded,
            iterations=iterations,
        )
        return b.item(node, 0), b.item(node, 1)

    agree(build, DIMS, case(2, 7), case(1, 5), case(3, 11))


@pytest.mark.parametrize("padded", [False, True])
def test_weights_of_one_query_row(agree: Any, padded: bool) -> None:
    def case(batch: int, keys: int) -> dict[str, Tensor]:
        given = {"q": torch.randn(batch, 4, 1, 8), "k": torch.randn(batch, 4, keys, 8)}
        return given | ({"padding": left_and_right(batch, keys)} if padded else {})

    dims = DIMS | {"q": {0: "batch"}}
    agree(
        lambda b, q, k, padding=None: b.op("attention_weights", q, k, None, padding, scale=0.3),
        dims, case(2, 7), case(1, 5), case(3, 11),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("padded", "causal", "window"), [(True, False, 0), (True, True, 3), (False, True, 0), (False, False, 0)]
)
def test_a_token_mask_that_something_else_reads(agree: Any, padded: bool, causal: bool, window: int) -> None:
    def build(b: Any, padding: Any) -> Any:
        tokens = b.size(padding, 1)
        return b.op(
            "token_mask", padding if padded else None, tokens, tokens, causal, window, torch.device("cpu")
        )

    cases = [{"padding": left_and_right(b, n)} for b, n in ((2, 7), (1, 4))]
    agree(build, DIMS, *cases)


@pytest.mark.parametrize(("bound", "asked"), [(1.0, False), (1e-9, True)])
def test_blind_queries_are_looked_for_only_where_there_may_be_some(bound: float, asked: bool) -> None:
    def attends(b: Any, x: Any, size: Any) -> Any:
        bias = b.call(aten.log.default, b.call(aten.clamp.default, size, bound))
        for _ in range(2):
            bias = b.call(aten.unsqueeze.default, bias, 1)
        return b.op("attention", x, x, x, bias, scale=0.5)

    case = {"x": torch.randn(2, 4, 6, 8), "size": torch.rand(2, 6) * 3}
    model = build(small_program(attends, {}, case), "ort")
    assert ("Greater" in {node.op_type for node in model.graph}) is asked
