"""ATen operators in ONNX equal PyTorch at shapes other than the example's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

aten = torch.ops.aten
DIMS = {"x": {0: "batch", 1: "tokens"}, "y": {0: "batch", 1: "tokens"}, "ids": {0: "batch", 1: "tokens"}}
SHAPES = ((2, 5), (1, 3), (3, 8))


def normal(*sizes: int) -> Tensor:
    return torch.randn(*sizes)


Make = Callable[[int, int], dict[str, Tensor]]


def floats(b: int, n: int) -> dict[str, Tensor]:
    return {"x": normal(b, n, 6)}


def pair(b: int, n: int) -> dict[str, Tensor]:
    return {"x": normal(b, n, 6), "y": normal(b, n, 6)}


def mixed(b: int, n: int) -> dict[str, Tensor]:
    return {"x": normal(b, n, 6), "ids": torch.randint(-9, 9, (b, n, 6))}


def integers(b: int, n: int) -> dict[str, Tensor]:
    return {"ids": torch.randint(-9, 9, (b, n))}


def booleans(b: int, n: int) -> dict[str, Tensor]:
    return {"x": torch.rand(b, n) > 0.5, "y": torch.rand(b, n) > 0.5}


def call(target: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """A build that calls ``target`` on its inputs followed by ``args``."""
    return lambda b, *nodes: b.call(target, *nodes, *args, **kwargs)


def grids(b: Any, x: Any) -> tuple[Any, ...]:
    """Both grids over the first row and the first column of ``x``."""
    lines = [b.call(aten.select.int, x, d, 0) for d in (0, 1)]
    node = b.call(aten.meshgrid.indexing, lines, indexing="xy")
    return b.item(node, 0), b.item(node, 1)


ARITHMETIC: list[tuple[str, Make, Any]] = [
    ("add", pair, call(aten.add.Tensor)),
    ("add with alpha", pair, call(aten.add.Tensor, alpha=2.5)),
    ("add a number", floats, call(aten.add.Tensor, 3)),
    ("add promotes", mixed, call(aten.add.Tensor)),
    ("integers plus a float", integers, call(aten.add.Tensor, 0.5)),
    ("narrow from the end", floats, call(aten.narrow.default, 1, -1, 1)),
    ("narrow before the end", floats, call(aten.narrow.default, 1, -3, 2)),
    ("sub", pair, call(aten.sub.Tensor, alpha=3)),
    ("rsub", floats, call(aten.rsub.Scalar, 1.0)),
    ("mul promotes", mixed, call(aten.mul.Tensor)),
    ("mul of bools", booleans, call(aten.mul.Tensor)),
    ("div of integers is a float", integers, call(aten.div.Tensor, 4)),
    ("floor division", integers, call(aten.div.Tensor_mode, 4, rounding_mode="floor")),
    ("floor division by a negative number", integers, call(aten.floor_divide.default, -4)),
    ("truncating division", integers, call(aten.div.Tensor_mode, 4, rounding_mode="trunc")),
    ("remainder of integers", integers, call(aten.remainder.Scalar, 4)),
    ("remainder by a negative number", integers, call(aten.remainder.Scalar, -4)),
    ("remainder of floats", floats, call(aten.remainder.Scalar, 0.7)),
    ("power", floats, call(aten.pow.Tensor_Scalar, 2)),
    ("number to a power", floats, lambda b, x: b.call(aten.pow.Scalar, 2.0, x)),
    ("minimum", pair, call(aten.minimum.default)),
    ("min.other", pair, call(aten.min.other)),
    ("clamp", floats, call(aten.clamp.default, -0.5, 0.5)),
    ("clamp from below", floats, call(aten.clamp_min.default, 0.1)),
    ("clamp from above", floats, call(aten.clamp_max.default, 0.1)),
    ("gelu", floats, call(aten.gelu.default)),
    ("tanh gelu", floats, call(aten.gelu.default, approximate="tanh")),
    ("silu", floats, call(aten.silu.default)),
    ("where", lambda b, n: {"m": torch.rand(b, n, 6) > 0.5} | pair(b, n), call(aten.where.self)),
    ("masked fill", lambda b, n: floats(b, n) | {"m": torch.rand(b, n, 6) > 0.5}, call(aten.masked_fill.Scalar, -1e9)),
    ("masked fill with -inf", lambda b, n: floats(b, n) | {"m": torch.rand(b, n, 1) > 0.5},
     call(aten.masked_fill.Scalar, float("-inf"))),
    ("equal to a number", integers, call(aten.eq.Scalar, 3)),
    ("not equal", pair, call(aten.ne.Tensor)),
    ("integers below a float", integers, call(aten.lt.Scalar, 0.5)),
    ("bools compared", booleans, call(aten.gt.Tensor)),
    ("and", booleans, call(aten.__and__.Tensor)),
    ("bitwise and", integers, call(aten.bitwise_and.Scalar, 3)),
    ("not", booleans, lambda b, x, y: b.call(aten.logical_not.default, x)),
    ("logical not of integers", integers, call(aten.logical_not.default)),
    ("to float", integers, call(aten.to.dtype, torch.float32)),
    ("to bool", integers, call(aten.to.dtype, torch.bool)),
    ("float to integer", floats, call(aten._to_copy.default, dtype=torch.int64)),
]  # fmt: skip

LAYOUT: list[tuple[str, Make, Any]] = [
    ("transpose", floats, call(aten.transpose.int, -1, 1)),
    ("transpose twice", floats, lambda b, x: b.call(aten.transpose.int, b.call(aten.transpose.int, x, 0, 2), 1, 2)),
    ("permute", floats, call(aten.permute.default, [2, 0, 1])),
    ("numpy_T", floats, call(aten.numpy_T.default)),
    ("unsqueeze at the end", floats, call(aten.unsqueeze.default, -1)),
    ("squeeze a dim of one", lambda b, n: {"x": normal(b, n, 1)}, call(aten.squeeze.dim, -1)),
    ("squeeze leaves other dims", floats, call(aten.squeeze.dim, 2)),
    ("expand", lambda b, n: {"x": normal(b, n, 1)}, lambda b, x: b.call(aten.expand.default, x, [-1, -1, 4])),
    ("expand adds dims", floats, lambda b, x: b.call(aten.expand.default, x, [3, -1, -1, -1])),
    ("cat", pair, lambda b, x, y: b.call(aten.cat.default, [x, y], -1)),
    ("cat promotes", mixed, lambda b, x, y: b.call(aten.cat.default, [x, y], 1)),
    ("stack", pair, lambda b, x, y: b.call(aten.stack.default, [x, y], 1)),
    ("split", floats, lambda b, x: tuple(b.item(b.call(aten.split.Tensor, x, 4, 2), i) for i in range(2))),
    ("chunk", floats, lambda b, x: tuple(b.item(b.call(aten.chunk.default, x, 3, -1), i) for i in range(3))),
    ("unbind", floats, lambda b, x: tuple(b.item(b.call(aten.unbind.int, x, 2), i) for i in (0, 5))),
    ("repeat", floats, call(aten.repeat.default, [2, 1, 3])),
    ("repeat adds dims", floats, call(aten.repeat.default, [2, 1, 1, 3])),
    ("tile", floats, call(aten.tile.default, [3])),
    ("repeat each", floats, call(aten.repeat_interleave.self_int, 2, 2)),
    ("repeat each token", floats, call(aten.repeat_interleave.self_int, 3, 1)),
    ("repeat each of everything", floats, call(aten.repeat_interleave.self_int, 2)),
    ("meshgrid", lambda b, n: {"x": normal(b, n)}, lambda b, x: grids(b, x)),
    ("one hot", lambda b, n: {"ids": torch.randint(0, 4, (b, n))}, call(aten.one_hot.default, 5)),
    ("flip", floats, call(aten.flip.default, [1])),
    ("slice", floats, call(aten.slice.Tensor, 1, 1, 9223372036854775807)),
    ("slice from the end", floats, call(aten.slice.Tensor, 1, -2, 9223372036854775807)),
    ("slice with a step", floats, call(aten.slice.Tensor, 2, 0, 5, 2)),
    ("select the last", floats, call(aten.select.int, 1, -1)),
    ("triu", floats, call(aten.triu.default, 1)),
    ("tril of bools", lambda b, n: {"x": torch.rand(b, n, 4) > 0.5}, call(aten.tril.default)),
    ("diff", floats, call(aten.diff.default)),
    ("cumsum of bools", booleans, lambda b, x, y: b.call(aten.cumsum.default, x, 1)),
    ("gather", lambda b, n: floats(b, n) | {"ids": torch.randint(0, 3, (b, n, 2))},
     lambda b, x, i: b.call(aten.gather.default, x, 1, i)),
    ("index by one tensor", lambda b, n: floats(b, n) | {"i": torch.tensor([2, 0, 1])},
     lambda b, x, i: b.call(aten.index.Tensor, x, [None, i])),
    ("index by two tensors", lambda b, n: floats(b, n) |
     {"i": torch.tensor([[0], [1], [0]]) % b, "j": torch.tensor([2, 0])},
     lambda b, x, i, j: b.call(aten.index.Tensor, x, [i, j])),
    ("stable sort", lambda b, n: {"x": torch.randint(0, 3, (b, n))},
     lambda b, x: tuple(b.item(b.call(aten.sort.stable, x, stable=True, dim=1, descending=True), i) for i in range(2))),
    ("argsort", floats, call(aten.argsort.default, 1)),
]  # fmt: skip

REDUCTIONS: list[tuple[str, Make, Any]] = [
    ("mean", floats, call(aten.mean.dim, [1], True)),
    ("mean of everything", floats, call(aten.mean.default)),
    ("sum of bools", booleans, lambda b, x, y: b.call(aten.sum.dim_IntList, x, [1])),
    (
        "max and its index",
        floats,
        lambda b, x: tuple(b.item(b.call(aten.max.dim, x, 2), i) for i in range(2)),
    ),
    ("argmax of integers", integers, call(aten.argmax.default, 1)),
    ("any", booleans, lambda b, x, y: b.call(aten.any.dim, x, 1)),
    ("all", booleans, lambda b, x, y: b.call(aten.all.default, x)),
    ("softmax", floats, call(aten.softmax.int, -1)),
    (
        "softmax in another dtype",
        lambda b, n: {"x": normal(b, n, 6).half()},
        call(aten.softmax.int, -1, torch.float32),
    ),
    ("layer norm", floats, call(aten.layer_norm.default, [6])),
    ("variance", floats, call(aten.var.correction, [1], correction=0)),
    ("standard deviation", floats, call(aten.std.correction, [1, 2], correction=1, keepdim=True)),
]


def table(rows: list[tuple[str, Make, Any]]) -> Any:
    return pytest.mark.parametrize(("make", "build"), [pytest.param(m, b, id=name) for name, m, b in rows])


@table(ARITHMETIC)
def test_arithmetic(agree: Any, make: Make, build: Any) -> None:
    agree(build, dims_of(make), *(make(b, n) for b, n in SHAPES))


@pytest.mark.parametrize(
    ("target", "values"),
    [
        (aten.log_sigmoid.default, [-1e4, -120.0, -1.0, 0.0, 1.0, 120.0, 1e4]),
        (aten.log1p.default, [-1.0, -0.5, -1e-7, 0.0, 1e-12, 1e-7, 1e-3, 1.0, 1e30, float("inf")]),
        (
            aten.expm1.default,
            [-float("inf"), -50.0, -1.0, -0.3, -1e-7, 0.0, 1e-12, 1e-7, 0.5, 1.0, 50.0, float("inf")],
        ),
        (aten.softplus.default, [-120.0, -20.0, 0.0, 19.0, 21.0, 120.0]),
    ],
    ids=lambda v: str(v) if not isinstance(v, list) else "",
)
def test_functions_that_are_written_out_hold_far_out_and_near_zero(
    agree: Any, target: Any, values: list[float]
) -> None:
    rows = [{"x": torch.tensor([values])}, {"x": torch.tensor([values, values])}]
    agree(lambda b, x: b.call(target, x), {"x": {0: "batch"}}, *rows)
    small = torch.tensor([[1e-9, 3e-8]])
    if target in (aten.log1p.default, aten.expm1.default):
        agree(lambda b, x: b.call(aten.mul.Tensor, b.call(target, x), 1e8), {"x": {0: "batch"}}, {"x": small})


@pytest.mark.parametrize("target", [aten.logaddexp.default, aten.logaddexp2.default])
def test_sums_of_exponentials_hold_far_out(agree: Any, target: Any) -> None:
    values = torch.tensor([-120.0, -3.0, 0.0, 3.0, 120.0, float("inf"), -float("inf")])
    left, right = torch.meshgrid(values, values, indexing="ij")
    agree(
        lambda b, x, y: b.call(target, x, y),
        {"x": {0: "batch"}, "y": {0: "batch"}},
        {"x": left, "y": right},
    )


def test_an_operator_whose_parts_write_is_taken_apart(agree: Any) -> None:
    agree(call(aten.cosine_similarity.default, -1), dims_of(pair), *(pair(b, n) for b, n in SHAPES))


@table(LAYOUT)
def test_layout(agree: Any, make: Make, build: Any) -> None:
    agree(build, dims_of(make), *(make(b, n) for b, n in SHAPES))


@table(REDUCTIONS)
def test_reductions(agree: Any, make: Make, build: Any) -> None:
    agree(build, dims_of(make), *(make(b, n) for b, n in SHAPES))


def dims_of(make: Make) -> dict[str, dict[int, str]]:
    """The dims that follow the batch and the length of the case."""
    small, large = make(2, 5), make(3, 8)
    named = {0: "batch", 1: "tokens"}
    return {
        k: {d: named[d] for d in range(v.dim()) if v.shape[d] != large[k].shape[d]} for k, v in small.items()
    }


def test_reshape_keeps_two_dynamic_dims(agree: Any) -> None:
    def build(b: Any, x: Any) -> Any:
        batch, tokens = b.size(x, 0), b.size(x, 1)
        heads = b.call(aten.reshape.default, x, [batch, tokens, 2, 3])
        folded = b.call(aten.reshape.default, heads, [-1, 3])
        return heads, folded, b.call(aten.reshape.default, folded, [batch, tokens, 6])

    agree(build, DIMS, *({"x": normal(b, n, 6)} for b, n in SHAPES))


def test_size_arithmetic_follows_the_input(agree: Any) -> None:
    import operator

    def build(b: Any, x: Any) -> Any:
        tokens = b.size(x, 1)
        half = b.call(operator.floordiv, b.call(operator.add, tokens, 1), 2)
        positions = b.call(aten.arange.default, half, device=torch.device("cpu"), pin_memory=False)
        ones = b.call(aten.new_ones.default, x, [half, 2])
        scaled = b.call(aten.mul.Tensor, x, b.call(operator.truediv, 1.0, tokens))
        return positions, ones, scaled, b.call(aten.slice.Tensor, x, 1, half, 9223372036854775807)

    agree(build, DIMS, *({"x": normal(b, n, 6)} for b, n in SHAPES))


def test_identity_matrices_of_a_size_that_varies(agree: Any) -> None:
    def build(b: Any, x: Any) -> Any:
        tokens = b.size(x, 1)
        return (
            b.call(aten.mul.Tensor, b.call(aten.eye.default, tokens), 2.0),
            b.call(aten.eye.m, tokens, 5, dtype=torch.int64),
            b.call(aten.eye.m, 3, tokens, dtype=torch.bool),
        )

    agree(build, DIMS, *({"x": normal(b, n, 6)} for b, n in SHAPES))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_over_stored_weights(agree: Any, bias: bool) -> None:
    weight, offset = normal(5, 6), normal(5)

    def build(b: Any, x: Any) -> Any:
        w = b.weight("layer.weight", weight)
        return b.call(aten.linear.default, x, w, *([b.weight("layer.bias", offset)] if bias else []))

    agree(build, DIMS, *({"x": normal(b, n, 6)} for b, n in SHAPES))


def test_a_tied_embedding_is_read_both_ways(agree: Any) -> None:
    weight = normal(11, 6)

    def build(b: Any, ids: Any) -> Any:
        table = b.weight("embedding.weight", weight)
        return b.call(aten.linear.default, b.call(aten.embedding.default, table, ids), table)

    agree(build, DIMS, *({"ids": torch.randint(0, 11, (b, n))} for b, n in SHAPES))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [((1, 1), (0, 0), (1, 1), 1), ((2, 1), (1, 2), (1, 2), 2)]
)
def test_convolution(agree: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> None:
    weight, bias = normal(4, 4 // groups, 3, 3), normal(4)

    def build(b: Any, x: Any) -> Any:
        w, c = b.weight("w", weight), b.weight("b", bias)
        return b.call(aten.conv2d.default, x, w, c, stride, padding, dilation, groups)

    agree(build, {"x": {0: "batch"}}, {"x": normal(2, 4, 9, 9)}, {"x": normal(1, 4, 9, 9)})
