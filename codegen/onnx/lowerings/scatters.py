"""Writing into a tensor where several sources may meet at one place.

ONNX Runtime reduces neither float16 nor bfloat16 in ``ScatterElements`` and ``ScatterND`` on the CPU, so these are
reduced in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers
from ..torchlib import lower_with_torchlib

aten = torch.ops.aten
_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of ``dtype`` are reduced."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@lowers(aten.scatter_add.default)
def scatter_add(e: Emitter, x: ir.Value, dim: int, index: ir.Value, source: ir.Value) -> Any:
    return scatter_reduce(e, x, dim, index, source, "sum")


@lowers(aten.scatter_reduce.two)
def scatter_reduce(
    e: Emitter,
    x: ir.Value,
    dim: int,
    index: ir.Value,
    source: ir.Value,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    """The exporter's table lowers ``mean`` to a plain overwrite and has no ``include_self=False``."""
    dtype, rank = e.fake(x).dtype, e.fake(x).dim()
    if rank == 0:
        return NotImplemented
    if reduce == "mean" and not dtype.is_floating_point:
        raise e.fail("the mean of integers is rounded down, which no ONNX reduction does")
    axis, wide = dim % rank, accumulator(dtype)
    shape = e.fake(index).shape
    if any(expression(a) != expression(b) for a, b in zip(shape, e.fake(source).shape, strict=True)):
        # PyTorch's source may be larger than the index; ONNX wants them equal.
        source = e.op("Slice", source, e.ints([0] * rank), e.shape(shape), e.ints(range(rank)))

    def write(base: ir.Value, values: ir.Value, reduction: str | None) -> ir.Value:
        return e.op("ScatterElements", base, index, values, axis=axis, reduction=reduction)

    def everywhere(value: float) -> ir.Value:
        return e.op("Expand", e.const(value, wide), e.shape(shape))

    total = e.cast(x, wide)
    if not include_self:
        total = write(total, everywhere(_neutral(reduce, wide)), None)
    total = write(total, e.cast(source, wide) if wide != dtype else source, _REDUCTIONS[reduce])
    if reduce == "mean":
        count = e.op("Expand", e.const(1, wide), e.shape(e.fake(x).shape))
        count = count if include_self else write(count, everywhere(0), None)
        total = e.op("Div", total, write(count, everywhere(1), "add"))
    return e.cast(total, dtype) if wide != dtype else total


def _neutral(reduce: str, dtype: torch.dtype) -> float:
    """What leaves the other operand of a reduction as it is."""
    if reduce not in ("amax", "amin"):
        return 1 if reduce == "prod" else 0
    if dtype.is_floating_point:
        return float("-inf" if reduce == "amax" else "inf")
    limits = torch.iinfo(dtype)
    return limits.min if reduce == "amax" else limits.max


@lowers(aten.index_put.default)
def index_put(e: Emitter, x: ir.Value, indices: Any, values: ir.Value, accumulate: bool = False) -> Any:
    dtype = e.fake(x).dtype
    wide = accumulator(dtype)
    if not accumulate or wide == dtype:
        return NotImplemented
    operands = []
    for value in (x, values):
        operands.append(e.cast(value, wide))
        e.annotate(operands[-1], e.fake(value).to(wide))  # the table reads ranks
    assert e.node is not None
    result = lower_with_torchlib(e, e.node, (operands[0], indices, operands[1], True), {})
    return result if result is NotImplemented else e.cast(result, dtype)
