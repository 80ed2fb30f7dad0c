"""Pooling to a given number of regions, whatever the size is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers

aten = torch.ops.aten


def _adaptive(kind: str) -> Callable[..., Any]:
    def lower(e: Emitter, x: ir.Value, output_size: Sequence[Any] | Any) -> Any:
        wanted = list(output_size) if isinstance(output_size, list | tuple) else [output_size]
        shape = e.fake(x).shape
        for axis, regions in enumerate(wanted, len(shape) - len(wanted)):
            size = expression(shape[axis])
            if regions == 1:
                x = e.op(kind, x, e.ints([axis]), keepdims=1)
            elif size.is_Integer and expression(regions).is_Integer:
                x = _regions(e, kind, x, axis, int(size), int(regions))
            else:
                return NotImplemented  # Regions of a size that varies are of sizes that vary.
        return x

    return lower


def _regions(e: Emitter, kind: str, x: ir.Value, axis: int, size: int, regions: int) -> ir.Value:
    """Region ``i`` is from ``floor(i * size / regions)`` to ``ceil((i + 1) * size / regions)``.

    All entries of one have one weight, so that one dim may be reduced after the other.
    """
    parts = [
        e.op(
            kind,
            e.op(
                "Slice",
                x,
                e.ints([i * size // regions]),
                e.ints([-(-(i + 1) * size // regions)]),
                e.ints([axis]),
            ),
            e.ints([axis]),
            keepdims=1,
        )
        for i in range(regions)
    ]
    return e.op("Concat", *parts, axis=axis)


def _largest(e: Emitter, x: ir.Value, output_size: Sequence[Any] | Any) -> Any:
    """The largest of each region, in place of where they lie too."""
    assert e.node is not None
    if any(user.args[1] != 0 for user in e.node.users):
        return NotImplemented
    largest = _adaptive("ReduceMax")(e, x, output_size)
    return largest if largest is NotImplemented else (largest, None)


lowers(aten.adaptive_avg_pool1d.default, aten._adaptive_avg_pool2d.default)(_adaptive("ReduceMean"))
lowers(aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)(_adaptive("ReduceMean"))
lowers(aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default)(_largest)
