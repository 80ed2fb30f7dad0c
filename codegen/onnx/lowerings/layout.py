"""Operators that move or rename dims without computing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..peephole import reshaped_from, same_shape, transposed
from ..registry import lowers

aten = torch.ops.aten


@lowers(
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.view_as.default,
    aten.reshape_as.default,
)
def reshape(e: Emitter, x: ir.Value, *_: Any) -> ir.Value:
    before, after = e.fake(x).shape, e.result.shape
    if len(before) == len(after) and all(
        expression(b) == expression(a) for b, a in zip(before, after, strict=True)
    ):
        return x
    source = reshaped_from(x)
    if source is not None and same_shape(e, source, after):
        return source
    return e.reshape(x, after)


@lowers(aten.transpose.int)
def transpose(e: Emitter, x: ir.Value, first: int, second: int) -> ir.Value:
    order = list(range(e.result.dim()))
    order[first], order[second] = order[second], order[first]
    return permute(e, x, order)


@lowers(aten.permute.default)
def permute(e: Emitter, x: ir.Value, dims: Sequence[int]) -> ir.Value:
    rank = e.fake(x).dim()
    return transposed(e, x, [d % rank for d in dims])


@lowers(aten.t.default, aten.numpy_T.default, aten.mT.default)
def matrix_transpose(e: Emitter, x: ir.Value) -> ir.Value:
    rank = e.fake(x).dim()
    if rank < 2:
        return x
    swap_all = e.node is not None and e.node.target is aten.numpy_T.default
    order = list(range(rank))
    order = order[::-1] if swap_all else [*order[:-2], order[-1], order[-2]]
    return e.op("Transpose", x, perm=order)


@lowers(aten.movedim.intlist, aten.movedim.int)
def movedim(e: Emitter, x: ir.Value, source: Any, destination: Any) -> ir.Value:
    rank = e.fake(x).dim()
    sources = [d % rank for d in ([source] if isinstance(source, int) else source)]
    targets = [d % rank for d in ([destination] if isinstance(destination, int) else destination)]
    placed = dict(zip(targets, sources, strict=True))
    rest = iter(d for d in range(rank) if d not in sources)
    return permute(e, x, [placed[d] if d in placed else next(rest) for d in range(rank)])


@lowers(aten.unsqueeze.default)
def unsqueeze(e: Emitter, x: ir.Value, dim: int) -> ir.Value:
    return e.op("Unsqueeze", x, e.ints([dim % e.result.dim()]))


@lowers(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(e: Emitter, x: ir.Value, dim: Any = None) -> ir.Value:
    shape = e.fake(x).shape
    dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    ones = [d % len(shape) for d in dims if expression(shape[d]) == 1] if len(shape) else []
    return e.op("Squeeze", x, e.ints(ones)) if ones else x


@lowers(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
def expand(e: Emitter, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    before, after = e.fake(x).shape, e.result.shape
    lead = len(after) - len(before)
    # Expand broadcasts both ways, so that a dim which keeps its size can be written as 1.
    target = [
        1 if d >= lead and expression(before[d - lead]) == expression(size) else size
        for d, size in enumerate(after)
    ]
    return x if not lead and all(t == 1 for t in target) else e.op("Expand", x, e.shape(target))


@lowers(aten.cat.default, aten.concat.default)
def cat(e: Emitter, tensors: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    dtype = e.result.dtype
    # PyTorch lets an empty 1-D tensor stand in a concatenation of any rank.
    parts = [e.cast(t, dtype) for t in tensors if not (e.fake(t).dim() == 1 and e.result.dim() > 1)]
    return parts[0] if len(parts) == 1 else e.op("Concat", *parts, axis=dim % e.result.dim())


@lowers(aten.stack.default)
def stack(e: Emitter, tensors: Sequence[ir.Value], dim: int = 0) -> ir.Value:
    axis = dim % e.result.dim()
    parts = [e.op("Unsqueeze", e.cast(t, e.result.dtype), e.ints([axis])) for t in tensors]
    return parts[0] if len(parts) == 1 else e.op("Concat", *parts, axis=axis)


@lowers(
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.sections,
)
def split(e: Emitter, x: ir.Value, _: Any, dim: int = 0) -> tuple[ir.Value, ...]:
    assert e.node is not None
    axis = dim % e.fake(x).dim()
    sizes = [part.shape[axis] for part in e.node.meta["val"]]
    if len(sizes) == 1:
        return (x,)
    return e.ops_out("Split", len(sizes), x, e.shape(sizes), axis=axis)


@lowers(aten.unbind.int)
def unbind(e: Emitter, x: ir.Value, dim: int = 0) -> tuple[ir.Value, ...]:
    assert e.node is not None
    count = len(e.node.meta["val"])
    return tuple(e.op("Gather", x, e.const(i), axis=dim % e.fake(x).dim()) for i in range(count))


@lowers(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(e: Emitter, tensors: Sequence[ir.Value], *, indexing: str = "ij") -> tuple[ir.Value, ...]:
    assert e.node is not None
    shape = e.node.meta["val"][0].shape
    place = list(range(len(shape)))
    if indexing == "xy" and len(shape) > 1:
        place[0], place[1] = 1, 0
    results = []
    for axis, tensor in zip(place, tensors, strict=True):
        column = e.op("Reshape", tensor, e.ints([-1 if d == axis else 1 for d in range(len(shape))]))
        results.append(e.op("Expand", column, e.shape([1 if d == axis else s for d, s in enumerate(shape)])))
    return tuple(results)


@lowers(aten.flip.default)
def flip(e: Emitter, x: ir.Value, dims: Sequence[int]) -> ir.Value:
    lowest = torch.iinfo(torch.int64).min
    count = len(dims)
    return e.op(
        "Slice", x, e.ints([-1] * count), e.ints([lowest] * count), e.ints(list(dims)), e.ints([-1] * count)
    )
