"""Operators that read or write some elements of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from ..emitter import Emitter, Operand, stored_name
from ..registry import lowers

aten = torch.ops.aten
_END = torch.iinfo(torch.int64).max


@lowers(aten.slice.Tensor)
def slice_(
    e: Emitter, x: ir.Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> ir.Value:
    axis = dim % e.fake(x).dim()
    size = expression(e.fake(x).shape[axis])
    if step == 1 and expression(e.result.shape[axis]) == size:
        return x
    start = 0 if start is None else start
    end = _END if end is None or expression(end) == size else end
    return e.op("Slice", x, e.shape([start]), e.shape([end]), e.ints([axis]), e.ints([step]))


@lowers(aten.narrow.default)
def narrow(e: Emitter, x: ir.Value, dim: int, start: Any, length: Any) -> ir.Value:
    end = start + length
    # What begins behind the end may end there.
    return slice_(e, x, dim, start, _END if isinstance(start, int) and start < 0 and end == 0 else end)


@lowers(aten.select.int)
def select(e: Emitter, x: ir.Value, dim: int, index: Any) -> ir.Value:
    return e.op("Gather", x, e.operand(index, torch.int64), axis=dim % e.fake(x).dim())


@lowers(aten.index_select.default)
def index_select(e: Emitter, x: ir.Value, dim: int, index: ir.Value) -> ir.Value:
    return e.op("Gather", x, index, axis=dim % e.fake(x).dim())


@lowers(aten.embedding.default)
def embedding(e: Emitter, weight: ir.Value, indices: ir.Value, *_: Any, **__: Any) -> ir.Value:
    assert e.node is not None
    name = stored_name(e.node.args[0])
    if name is not None and name in e.stored:
        rows = e.stored[name].rows(e, name, indices)
        if rows is not NotImplemented:
            return rows  # type: ignore[no-any-return]
    return e.op("Gather", weight, indices, axis=0)


@lowers(aten.gather.default)
def gather(e: Emitter, x: ir.Value, dim: int, index: ir.Value, **_: Any) -> Any:
    if e.fake(x).dim() == 0:
        return NotImplemented
    return e.op("GatherElements", x, index, axis=dim % e.fake(x).dim())


@lowers(aten.scatter.src)
def scatter(e: Emitter, x: ir.Value, dim: int, index: ir.Value, source: ir.Value) -> Any:
    # PyTorch's source may be larger than the index; ONNX wants them equal.
    if any(
        expression(a) != expression(b) for a, b in zip(e.fake(index).shape, e.fake(source).shape, strict=True)
    ):
        return NotImplemented
    return e.op("ScatterElements", x, index, source, axis=dim % e.fake(x).dim())


@lowers(aten.index.Tensor)
def index(e: Emitter, x: ir.Value, indices: Sequence[ir.Value | None]) -> Any:
    """One integer index is a Gather; adjacent leading ones are a GatherND; the exporter's table knows the rest."""
    given = [(position, value) for position, value in enumerate(indices) if value is not None]
    if any(e.fake(value).dtype == torch.bool for _, value in given):
        return NotImplemented
    if len(given) == 1:
        position, value = given[0]
        return e.op("Gather", x, value, axis=position)
    if [position for position, _ in given] != list(range(len(given))):
        return NotImplemented
    shape = torch.broadcast_shapes(*(e.fake(value).shape for _, value in given))  # type: ignore[no-untyped-call]
    columns = []
    for _, value in given:
        fake = e.fake(value)
        wide = value
        if [expression(s) for s in fake.shape] != [expression(s) for s in shape]:
            wide = e.op("Expand", value, e.shape(shape))
        columns.append(e.op("Unsqueeze", e.cast(wide, torch.int64), e.ints([-1])))
    return e.op("GatherND", x, e.op("Concat", *columns, axis=-1))


@lowers(aten.cumsum.default)
def cumsum(e: Emitter, x: ir.Value, dim: int, **_: Any) -> ir.Value:
    return e.op("CumSum", e.cast(x, e.result.dtype), e.const(dim % max(1, e.result.dim())))


@lowers(aten.topk.default)
def topk(
    e: Emitter,
    x: ir.Value,
    k: Any,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002
) -> tuple[ir.Value, ...]:
    return e.ops_out(
        "TopK", 2, x, e.shape([k]), axis=dim % e.fake(x).dim(), largest=int(largest), sorted=int(sorted)
    )


@lowers(aten.sort.default, aten.sort.stable)
def sort(
    e: Emitter, x: ir.Value, *args: Any, dim: int = -1, descending: bool = False, **_: Any
) -> tuple[ir.Value, ...]:
    if args and isinstance(args[0], bool) and e.node is not None and e.node.target is aten.sort.stable:
        args = args[1:]
    dim = args[0] if args else dim
    descending = args[1] if len(args) > 1 else descending
    return sorted_values(e, x, dim % e.fake(x).dim(), descending)


@lowers(aten.argsort.default, aten.argsort.stable)
def argsort(e: Emitter, x: ir.Value, dim: int = -1, descending: bool = False, **_: Any) -> ir.Value:
    return sorted_values(e, x, dim % e.fake(x).dim(), descending)[1]


def sorted_values(e: Emitter, x: ir.Value, axis: int, descending: bool) -> tuple[ir.Value, ...]:
    """Sorted values and their indices; TopK puts the lower index first among equals, so the order is stable."""
    count = e.shape([e.fake(x).shape[axis]])
    return e.ops_out("TopK", 2, x, count, axis=axis, largest=int(descending))


@lowers(aten.triu.default)
def triu(e: Emitter, x: ir.Value, diagonal: int = 0) -> ir.Value:
    return _triangle(e, x, diagonal, upper=1)


@lowers(aten.tril.default)
def tril(e: Emitter, x: ir.Value, diagonal: int = 0) -> ir.Value:
    return _triangle(e, x, diagonal, upper=0)


def _triangle(e: Emitter, x: ir.Value, diagonal: int, upper: int) -> ir.Value:
    # ONNX Runtime has no bool kernel for Trilu.
    if e.result.dtype == torch.bool:
        number = e.cast(x, torch.int64)
        return e.cast(e.op("Trilu", number, e.const(diagonal), upper=upper), torch.bool)
    return e.op("Trilu", x, e.const(diagonal), upper=upper)


@lowers(aten.diff.default)
def diff(e: Emitter, x: ir.Value, n: int = 1, dim: int = -1, *extra: Operand | None) -> Any:
    if n != 1 or any(v is not None for v in extra):
        return NotImplemented
    axis = e.ints([dim % e.fake(x).dim()])
    later = e.op("Slice", x, e.ints([1]), e.ints([_END]), axis)
    earlier = e.op("Slice", x, e.ints([0]), e.ints([-1]), axis)
    return e.op("Xor" if e.result.dtype == torch.bool else "Sub", later, earlier)


@lowers(aten.one_hot.default)
def one_hot(e: Emitter, x: ir.Value, num_classes: int = -1) -> Any:
    if num_classes < 0:
        return NotImplemented
    return e.op("OneHot", x, e.const(num_classes), e.const([0, 1]), axis=-1)


@lowers(aten.item.default, aten._local_scalar_dense.default)
def item(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Reshape", e.cast(x, torch.int64), e.ints([]))


@lowers(aten.masked_select.default)
def masked_select(e: Emitter, x: ir.Value, mask: ir.Value) -> ir.Value:
    shape = torch.broadcast_shapes(e.fake(x).shape, e.fake(mask).shape)
    flat = [e.op("Reshape", e.op("Expand", value, e.shape(shape)), e.ints([-1])) for value in (x, mask)]
    return e.op("Compress", *flat, axis=0)
