"""Operators on images and grids."""

from __future__ import annotations

import onnx_ir as ir
import torch

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
