"""Reductions over dims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from ..emitter import Emitter
from ..registry import lowers

aten = torch.ops.aten


def _reduction(kind: str) -> Callable[..., ir.Value]:
    def lower(
        e: Emitter, x: ir.Value, dim: Sequence[int] | int | None = None, keepdim: bool = False, **_: Any
    ) -> ir.Value:
        dims = [dim] if isinstance(dim, int) else list(dim or ())
        axes = e.ints([d % max(1, e.fake(x).dim()) for d in dims]) if dims else None
        return e.op(kind, e.cast(x, e.result.dtype), axes, keepdims=int(keepdim))

    return lower


lowers(aten.mean.dim)(_reduction("ReduceMean"))
lowers(aten.sum.dim_IntList)(_reduction("ReduceSum"))
lowers(aten.amax.default)(_reduction("ReduceMax"))
lowers(aten.amin.default)(_reduction("ReduceMin"))


def _total(kind: str) -> Callable[..., ir.Value]:
    def lower(e: Emitter, x: ir.Value, **_: Any) -> ir.Value:
        return e.op(kind, e.cast(x, e.result.dtype), keepdims=0)

    return lower


lowers(aten.mean.default)(_total("ReduceMean"))
lowers(aten.sum.default)(_total("ReduceSum"))
lowers(aten.max.default)(_total("ReduceMax"))
lowers(aten.min.default)(_total("ReduceMin"))


def _with_index(reduce: str, index: str) -> Callable[..., tuple[ir.Value, ir.Value]]:
    def lower(e: Emitter, x: ir.Value, dim: int, keepdim: bool = False) -> tuple[ir.Value, ir.Value]:
        axis = dim % max(1, e.fake(x).dim())
        keep = int(keepdim)
        return e.op(reduce, x, e.ints([axis]), keepdims=keep), e.op(index, x, axis=axis, keepdims=keep)

    return lower


lowers(aten.max.dim)(_with_index("ReduceMax", "ArgMax"))
lowers(aten.min.dim)(_with_index("ReduceMin", "ArgMin"))


def _index_only(kind: str) -> Callable[..., Any]:
    def lower(e: Emitter, x: ir.Value, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return NotImplemented
        # ONNX Runtime has no ArgMax kernel for int64 and bool.
        source = x if e.fake(x).dtype.is_floating_point else e.cast(x, torch.int32)
        return e.op(kind, source, axis=dim % max(1, e.fake(x).dim()), keepdims=int(keepdim))

    return lower


lowers(aten.argmax.default)(_index_only("ArgMax"))
lowers(aten.argmin.default)(_index_only("ArgMin"))


def _variance(
    e: Emitter, x: ir.Value, dim: Sequence[int] | None, correction: float | None, keepdim: bool
) -> tuple[ir.Value, ir.Value]:
    """Variance and mean; ``correction`` is taken from the number of elements (1 when None)."""
    dtype, shape = e.result.dtype, e.fake(x).shape
    dims = [d % len(shape) for d in dim] if dim else list(range(len(shape)))
    axes = e.ints(dims)
    mean = e.op("ReduceMean", x, axes, keepdims=1)
    centred = e.op("Sub", x, mean)
    count: int | torch.SymInt = 1
    for d in dims:
        count = count * shape[d]
    total = e.op("ReduceSum", e.op("Mul", centred, centred), axes, keepdims=int(keepdim))
    offset = e.const(1 if correction is None else correction, dtype)
    # As in PyTorch, a correction above the count divides by zero rather than by a negative number.
    divisor = e.op("Max", e.op("Sub", e.operand(count, dtype), offset), e.const(0, dtype))
    return e.op("Div", total, divisor), mean if keepdim else e.op("Squeeze", mean, axes)


@lowers(aten.var.correction)
def var(
    e: Emitter, x: ir.Value, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> ir.Value:
    return _variance(e, x, dim, correction, keepdim)[0]


@lowers(aten.std.correction)
def std(
    e: Emitter, x: ir.Value, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> ir.Value:
    return e.op("Sqrt", _variance(e, x, dim, correction, keepdim)[0])


@lowers(aten.var_mean.correction)
def var_mean(
    e: Emitter, x: ir.Value, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[ir.Value, ir.Value]:
    return _variance(e, x, dim, correction, keepdim)
