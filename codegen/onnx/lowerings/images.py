"""Operators on images and grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers

aten = torch.ops.aten

# In the order of PyTorch's enums; opset 20 renamed the modes, so that the exporter's table cannot be used here.
_MODES = ("linear", "nearest", "cubic")
_PADDINGS = ("zeros", "border", "reflection")


@lowers(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(
    e: Emitter, x: ir.Value, grid: ir.Value, mode: int, padding_mode: int, align_corners: bool
) -> ir.Value:
    return e.op(
        "GridSample", x, grid,
        mode=_MODES[mode], padding_mode=_PADDINGS[padding_mode], align_corners=int(align_corners),
    )  # fmt: skip


@lowers(aten.upsample_linear1d.vec)
def upsample_linear1d(
    e: Emitter, x: ir.Value, output_size: Any, align_corners: bool, scale_factors: Sequence[float] | None
) -> Any:
    before, after = (expression(value.shape[2]) for value in (e.fake(x), e.result))
    if scale_factors is not None and before.is_Integer and after.is_Integer:
        # PyTorch steps by the factor, and ONNX by the ratio of the sizes.
        one = torch.eye(int(before), dtype=torch.float64)[None]
        found = aten.upsample_linear1d.vec(one, None, align_corners, scale_factors)
        return e.op("MatMul", x, e.const(found[0], e.result.dtype))
    corners = "align_corners" if align_corners else "half_pixel"
    how: dict[str, Any] = {"axes": [2], "mode": "linear", "coordinate_transformation_mode": corners}
    if scale_factors is None:
        return e.op("Resize", x, None, None, e.shape([e.result.shape[2]]), **how)
    if not float(scale_factors[0]).is_integer() or align_corners:
        raise e.fail(
            f"ONNX Runtime rounds a length that varies times {scale_factors[0]} otherwise than PyTorch: give the size"
        )
    return e.op("Resize", x, None, e.const(list(scale_factors), torch.float32), **how)


def _antialiased(target: Any) -> Callable[..., Any]:
    """By a product with each dim's weights: what ONNX Runtime makes of ``antialias`` is something else."""

    def lower(
        e: Emitter, x: ir.Value, output_size: Any, align_corners: bool, scale_factors: Any = None
    ) -> Any:
        sizes = [expression(size) for size in (*e.fake(x).shape[2:], *e.result.shape[2:])]
        if not all(size.is_Integer for size in sizes):
            return NotImplemented
        weights = []
        for dim, (before, after) in enumerate(zip(map(int, sizes[:2]), map(int, sizes[2:]), strict=True)):
            one = torch.eye(before, dtype=torch.float64)[None, None]
            if scale_factors is None:
                found = target(one, [after, before], align_corners, None)
            else:
                found = target(one, None, align_corners, [scale_factors[dim], 1.0])
            weights.append(found[0, 0].T)
        rows, columns = (e.const(weight, e.result.dtype) for weight in weights)
        wide = e.op("MatMul", x, columns)
        turned = e.op("MatMul", e.op("Transpose", wide, perm=[0, 1, 3, 2]), rows)
        return e.op("Transpose", turned, perm=[0, 1, 3, 2])

    return lower


for _target in (aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec):
    lowers(_target)(_antialiased(_target))
