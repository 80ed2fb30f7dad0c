"""Choosing, gathering and scattering tokens; every count is a symbolic size, never a number of the example."""

from __future__ import annotations

import onnx_ir as ir
import torch

from tersor.ir.dialect import DIALECT
from tersor.ir.dialect.select_tokens import LARGEST
from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers

Size = int | torch.SymInt


def first_of(e: Emitter, x: ir.Value, count: Size, largest: bool = True) -> tuple[ir.Value, ir.Value]:
    """The ``count`` largest (or smallest) of each row and their indices; among equals the lower index comes first."""
    values, indices = e.ops_out("TopK", 2, x, e.shape([count]), axis=1, largest=int(largest))
    return values, indices


def ascending(e: Emitter, index: ir.Value, count: Size) -> ir.Value:
    return first_of(e, index, count, largest=False)[0]


def inverse(e: Emitter, order: ir.Value, tokens: Size) -> ir.Value:
    """The inverse of the permutation in every row: the place of each token in ``order``."""
    return first_of(e, order, tokens, largest=False)[1]


def ordinals(e: Emitter, padding: ir.Value, first: int = 0) -> tuple[ir.Value, ir.Value]:
    """Index of every token among its row's real ones ``[batch, tokens]``, and how many there are ``[batch, 1]``.

    Args:
        first: the real token that is counted as 0.
    """
    real = e.cast(padding, torch.int64)
    ordinal = e.op("Sub", e.op("CumSum", real, e.const(1)), e.const(1 + first))
    return ordinal, e.op("ReduceSum", real, e.ints([1]), keepdims=1)


def row_free(e: Emitter, real: ir.Value, fixed: int) -> ir.Value:
    """How many of each row's real tokens are not protected, ``[batch, 1]``."""
    return e.op("Max", e.op("Sub", real, e.const(fixed)), e.const(0)) if fixed else real


def row_leaving(e: Emitter, free: ir.Value, keep_per_mille: int) -> ir.Value:
    """How many of each row's free tokens are not kept, ``[batch, 1]``: rounded down, as ``kept_count`` rounds up."""
    return e.op("Div", e.op("Mul", free, e.const(1000 - keep_per_mille)), e.const(1000))


@lowers(DIALECT["select_tokens"].overload)
def select_tokens(
    e: Emitter,
    scores: ir.Value,
    padding: ir.Value | None = None,
    *,
    keep_per_mille: int,
    prefix: int = 0,
    last: int = 0,
) -> ir.Value:
    tokens, count = e.fake(scores).shape[1], e.result.shape[1]
    scores = _finite(e, e.cast(scores, torch.float32))
    highest = e.const(float("inf"), torch.float32)
    if padding is None:
        if prefix or last:
            ordinal = e.op("Range", e.const(0), e.sizes.scalar(tokens), e.const(1))
            scores = e.op("Where", _ends(e, ordinal, e.sizes.scalar(tokens), prefix, last), highest, scores)
        return ascending(e, first_of(e, scores, count)[1], count)
    padding = e.cast(padding, torch.bool)
    ordinal, real = ordinals(e, padding)
    if prefix or last:
        scores = e.op("Where", _ends(e, ordinal, real, prefix, last), highest, scores)
    priority = e.op("Where", padding, scores, e.const(float("-inf"), torch.float32))
    rank = inverse(e, first_of(e, priority, tokens)[1], tokens)
    kept = e.op("Sub", real, row_leaving(e, row_free(e, real, prefix + last), keep_per_mille))
    # A row keeps no more than its real tokens, and padding ranks behind all of them.
    chosen = e.op("Less", rank, kept)
    # Real tokens that were chosen come first, then padding as filler; dropped tokens never fill a column.
    filler = e.op("Where", padding, e.const(0), e.const(1))
    tier = e.op("Where", chosen, e.const(2), filler)
    return ascending(e, first_of(e, tier, count)[1], count)


def _finite(e: Emitter, scores: ir.Value) -> ir.Value:
    """Scores between those of protected tokens and of padding; NaN, of which TopK says nothing, becomes the lowest."""
    lowest, largest = (e.const(bound, torch.float32) for bound in (-LARGEST, LARGEST))
    return e.op("Min", e.op("Where", e.op("Greater", scores, lowest), scores, lowest), largest)


def _ends(e: Emitter, ordinal: ir.Value, real: ir.Value, prefix: int, last: int) -> ir.Value:
    """Where a token is one of the first ``prefix`` or the ``last`` real ones."""
    start = e.op("Less", ordinal, e.const(prefix))
    if not last:
        return start
    return e.op("Or", start, e.op("GreaterOrEqual", ordinal, e.op("Sub", real, e.const(last))))


@lowers(DIALECT["gather_tokens"].overload)
def gather_tokens(e: Emitter, x: ir.Value, index: ir.Value, dim: int) -> ir.Value:
    """``GatherND`` copies whole rows, for which ``GatherElements`` would want an index for every number."""
    source, batch = e.fake(x).shape, e.result.shape[0]
    if expression(source[0]) != expression(batch):
        x = e.op("Expand", x, e.shape([batch, *([1] * (len(source) - 1))]))
    if len(source) == 2:
        return e.op("GatherElements", x, index, axis=1)
    columns = e.op("Unsqueeze", index, e.ints([*range(1, dim), dim + 1]))
    if dim > 1:
        columns = e.op("Expand", columns, e.shape([1, *source[1:dim], 1, 1]))
    return e.op("GatherND", x, columns, batch_dims=dim)


@lowers(DIALECT["scatter_tokens"].overload)
def scatter_tokens(e: Emitter, base: ir.Value, index: ir.Value, x: ir.Value) -> ir.Value:
    fake = e.fake(index)
    if expression(fake.shape[1]) == 0:  # all tokens are kept, and none was merged
        return base
    x = e.cast(x, e.fake(base).dtype)
    if e.fake(base).dim() == 2:
        return e.op("ScatterElements", base, index, x, axis=1)
    rows = e.op("Range", e.const(0), e.sizes.scalar(fake.shape[0]), e.const(1))
    rows = e.op("Expand", e.op("Unsqueeze", rows, e.ints([1, 2])), e.shape([1, fake.shape[1], 1]))
    places = e.op("Concat", rows, e.op("Unsqueeze", index, e.ints([2])), axis=2)
    return e.op("ScatterND", base, places, x)
