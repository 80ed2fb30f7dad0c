"""Operators that repeat a tensor, or its elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers

aten = torch.ops.aten


@lowers(aten.repeat.default, aten.tile.default)
def repeat(e: Emitter, x: ir.Value, repeats: Sequence[Any]) -> ir.Value:
    rank = e.fake(x).dim()
    if len(repeats) > rank:
        x = e.op("Unsqueeze", x, e.ints(list(range(len(repeats) - rank))))
    return e.op("Tile", x, e.shape([*([1] * (rank - len(repeats))), *repeats]))


@lowers(aten.repeat_interleave.self_int)
def repeated_equally(e: Emitter, x: ir.Value, repeats: Any, dim: int | None = None, **_: Any) -> ir.Value:
    """Every element ``repeats`` times, by broadcasting a new dim behind ``dim``."""
    if dim is None:
        x = e.op("Reshape", x, e.ints([-1]))
        before: Sequence[Any] = e.result.shape
        axis = 0
    else:
        before, axis = e.fake(x).shape, dim % e.fake(x).dim()
    wide = e.op("Unsqueeze", x, e.ints([axis + 1]))
    wide = e.op("Expand", wide, e.shape([repeats if d == axis + 1 else 1 for d in range(len(before) + 1)]))
    return e.op("Reshape", wide, e.shape([-1 if d == axis else size for d, size in enumerate(before)]))


@lowers(aten.repeat_interleave.Tensor)
def repeated_places(e: Emitter, repeats: ir.Value, **_: Any) -> ir.Value:
    return e.cast(_repeated(e, repeats), e.result.dtype)


@lowers(aten.repeat_interleave.self_Tensor)
def repeat_interleave(
    e: Emitter, x: ir.Value, repeats: ir.Value, dim: int | None = None, **_: Any
) -> ir.Value:
    if dim is None:
        x = e.op("Reshape", x, e.ints([-1]))
    axis = 0 if dim is None else dim % e.fake(x).dim()
    if e.fake(repeats).dim() == 0 or expression(e.fake(repeats).shape[0]) == 1:
        repeats = e.op("Expand", repeats, e.op("Shape", x, start=axis, end=axis + 1))
    return e.op("Gather", x, _repeated(e, repeats), axis=axis)


def _repeated(e: Emitter, repeats: ir.Value) -> ir.Value:
    """Every place as many times as ``repeats`` says there: how many of them have ended before each result."""
    ends = e.op("CumSum", e.cast(repeats, torch.int64), e.const(0))
    total = e.op("ReduceSum", repeats, e.ints([0]), keepdims=0)
    count = e.op("Range", e.const(0), e.cast(total, torch.int64), e.const(1))
    ended = e.op("LessOrEqual", ends, e.op("Unsqueeze", count, e.ints([1])))
    return e.op("ReduceSum", e.op("Cast", ended, to=ir.DataType.INT64), e.ints([1]), keepdims=0)
