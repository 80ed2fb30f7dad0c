"""Matching and merging of tokens (ToMe)."""

from __future__ import annotations

import onnx_ir as ir
import torch

from tersor.ir.dialect import DIALECT
from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers
from .scatters import accumulator
from .tokens import Size, ascending, first_of, inverse, ordinals, row_free, row_leaving

_END = torch.iinfo(torch.int64).max


@lowers(DIALECT["match_tokens"].overload)
def match_tokens(
    e: Emitter,
    metric: ir.Value,
    padding: ir.Value | None = None,
    *,
    keep_per_mille: int,
    prefix: int = 0,
    last: int = 0,
) -> tuple[ir.Value, ...]:
    assert e.node is not None
    kept_fake, source_fake, *_ = e.node.meta["val"]
    count, merged = kept_fake.shape[1], source_fake.shape[1]
    metric = e.cast(metric, torch.float32)
    norm = e.op("Max", e.op("ReduceL2", metric, e.ints([2]), keepdims=1), e.const(1e-12, torch.float32))
    unit = e.op("Div", metric, norm)
    tokens = e.fake(metric).shape[1]
    if padding is None:
        source, partner = _match(e, unit, merged, prefix, last)
        leaves = None
    else:
        source, partner, leaves = _match_rows(
            e, unit, e.cast(padding, torch.bool), tokens, merged, keep_per_mille, prefix, last
        )
    stays = e.op("ScatterElements", _full(e, metric, 1), source, _full_like(e, source), axis=1)
    kept = first_of(e, stays, count)[1]
    column = e.op("Sub", e.op("CumSum", stays, e.const(1)), e.const(1))
    target = e.op("GatherElements", column, partner, axis=1)
    if leaves is not None:
        target = e.op("Where", e.op("GatherElements", leaves, source, axis=1), target, e.const(0))
    return kept, source, target, e.op("ScatterElements", column, source, target, axis=1)


def _match(e: Emitter, unit: ir.Value, merged: Size, prefix: int, last: int) -> tuple[ir.Value, ir.Value]:
    """Sources in order and their partners, where every row is full: only odd by even similarities are computed."""
    axis, step, end = e.ints([1]), e.ints([2]), e.ints([-last if last else _END])
    odd = e.op("Slice", unit, e.ints([prefix + 1]), end, axis, step)
    even = e.op("Slice", unit, e.ints([prefix]), end, axis, step)
    similarity = e.op("MatMul", odd, e.op("Transpose", even, perm=[0, 2, 1]))
    best = e.op("ReduceMax", similarity, e.ints([2]), keepdims=0)
    partner = e.op("ArgMax", similarity, axis=2, keepdims=0)
    leaving = ascending(e, first_of(e, best, merged)[1], merged)
    twice = e.const(2)
    source = e.op("Add", e.op("Mul", leaving, twice), e.const(prefix + 1))
    joined = e.op("GatherElements", partner, leaving, axis=1)
    return source, e.op("Add", e.op("Mul", joined, twice), e.const(prefix))


def _match_rows(
    e: Emitter,
    unit: ir.Value,
    padding: ir.Value,
    tokens: Size,
    merged: Size,
    keep_per_mille: int,
    prefix: int,
    last: int,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Sources, partners and which tokens leave, where rows differ in length."""
    place, real = ordinals(e, padding, prefix)
    count = row_free(e, real, prefix + last)
    free = padding
    if prefix:
        free = e.op("And", free, e.op("GreaterOrEqual", place, e.const(0)))
    if last:
        free = e.op("And", free, e.op("Less", place, count))
    odd = e.op("And", free, e.op("Equal", e.op("Mod", place, e.const(2)), e.const(1)))
    even = e.op("Xor", free, odd)
    low = e.const(float("-inf"), torch.float32)
    similarity = e.op("MatMul", unit, e.op("Transpose", unit, perm=[0, 2, 1]))
    # Added to a row of keys: choosing at each of [tokens, tokens] entries takes ONNX Runtime longer.
    hidden = e.op("Where", even, e.const(0, torch.float32), low)
    similarity = e.op("Add", similarity, e.op("Unsqueeze", hidden, e.ints([1])))
    partner = e.op("ArgMax", similarity, axis=2, keepdims=0)
    best = e.op("Where", odd, e.op("ReduceMax", similarity, e.ints([2]), keepdims=0), low)
    rank = inverse(e, first_of(e, best, tokens)[1], tokens)
    leaves = e.op("And", odd, e.op("Less", rank, row_leaving(e, count, keep_per_mille)))
    # Leaving tokens first, then padding to fill the columns of shorter rows, each in the order of the tokens.
    tier = e.op("Where", leaves, e.const(2), e.op("Where", padding, e.const(0), e.const(1)))
    source = ascending(e, first_of(e, tier, merged)[1], merged)
    return source, e.op("GatherElements", partner, source, axis=1), leaves


def _full(e: Emitter, metric: ir.Value, number: int) -> ir.Value:
    """Int64 ``[batch, tokens]`` filled with a number."""
    shape = e.shape(e.fake(metric).shape[:2])
    return e.op("ConstantOfShape", shape, value=ir.tensor_adapters.TorchTensor(torch.tensor([number])))


def _full_like(e: Emitter, index: ir.Value) -> ir.Value:
    return e.op("Mul", index, e.const(0))


@lowers(DIALECT["merge_tokens"].overload)
def merge_tokens(
    e: Emitter, x: ir.Value, size: ir.Value, kept: ir.Value, source: ir.Value, target: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The sum is a ``ScatterElements``: ONNX Runtime runs ``ScatterND`` in parallel, where equal targets race."""
    fake, width, merged = e.fake(x), e.fake(x).shape[2], e.fake(source).shape[1]
    size_dtype = e.fake(size).dtype
    wide = accumulator(torch.promote_types(fake.dtype, size_dtype))
    x, size = e.cast(x, wide), e.cast(size, wide)
    own = e.op("GatherElements", size, kept, axis=1)
    # Nothing merges where everything is kept, and ONNX Runtime infers wrong shapes from sizes that are always 0.
    merges = expression(merged) != 0
    sizes = own
    if merges:
        joining = e.op("GatherElements", size, source, axis=1)
        sizes = e.op("ScatterElements", own, target, joining, axis=1, reduction="add")
    # What nothing but padding is in weighs 1 and stays as it is.
    real, one = e.op("Greater", sizes, e.const(0, wide)), e.const(1, wide)
    total = _weighted(e, _rows(e, x, kept), e.op("Where", real, own, one))
    if merges:
        places = e.op("Expand", e.op("Unsqueeze", target, e.ints([2])), e.shape([1, 1, width]))
        sources = _weighted(e, _rows(e, x, source), joining)
        total = e.op("ScatterElements", total, places, sources, axis=1, reduction="add")
    mean = e.op("Div", total, e.op("Unsqueeze", e.op("Where", real, sizes, one), e.ints([2])))
    return (
        mean if wide == fake.dtype else e.cast(mean, fake.dtype),
        sizes if wide == size_dtype else e.cast(sizes, size_dtype),
    )


def _weighted(e: Emitter, rows: ir.Value, weights: ir.Value) -> ir.Value:
    return e.op("Mul", rows, e.op("Unsqueeze", weights, e.ints([2])))


def _rows(e: Emitter, x: ir.Value, index: ir.Value) -> ir.Value:
    return e.op("GatherND", x, e.op("Unsqueeze", index, e.ints([2])), batch_dims=1)
