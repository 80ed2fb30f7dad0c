"""Operators that make tensors from nothing but sizes and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from ..emitter import Emitter, Operand
from ..registry import lowers

aten = torch.ops.aten


@lowers(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange(e: Emitter, *bounds: Operand, **_: Any) -> ir.Value:
    dtype = e.result.dtype
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    # Range has kernels for these dtypes only.
    work = (
        dtype
        if dtype in (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16)
        else torch.float32
    )
    values = e.op("Range", *(e.operand(b, work) for b in (start, end, step)))
    values.type = ir.TensorType(ir.tensor_adapters.from_torch_dtype(work))
    return e.cast(values, dtype)


def _filled(e: Emitter, value: Operand) -> ir.Value:
    fake = e.result
    if isinstance(value, ir.Value | torch.SymInt | torch.SymFloat):
        scalar = e.operand(value, fake.dtype)
        return e.op("Expand", scalar, e.shape(fake.shape))
    if not fake.shape:
        return e.const(value, fake.dtype)
    filler = TorchTensor(torch.tensor([value], dtype=fake.dtype))
    return e.op("ConstantOfShape", e.shape(fake.shape), value=filler)


@lowers(aten.full.default)
def full(e: Emitter, size: Sequence[Any], value: Operand, **_: Any) -> ir.Value:
    return _filled(e, value)


@lowers(aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor)
def full_like(e: Emitter, x: ir.Value, value: Operand, **_: Any) -> ir.Value:
    return _filled(e, value)


@lowers(aten.new_full.default)
def new_full(e: Emitter, x: ir.Value, size: Sequence[Any], value: Operand, **_: Any) -> ir.Value:
    return _filled(e, value)


@lowers(
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
)
def zeros(e: Emitter, *_: Any, **__: Any) -> ir.Value:
    return _filled(e, 0)


@lowers(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones(e: Emitter, *_: Any, **__: Any) -> ir.Value:
    return _filled(e, 1)


@lowers(aten.scalar_tensor.default)
def scalar_tensor(e: Emitter, value: Operand, **_: Any) -> ir.Value:
    return e.operand(value, e.result.dtype)


@lowers(aten.eye.default, aten.eye.m)
def eye(e: Emitter, rows: Operand, columns: Operand | None = None, **_: Any) -> ir.Value:
    """Ones where the row's number is the column's."""
    counts = [
        e.op("Range", e.const(0), e.operand(count, torch.int64), e.const(1))
        for count in (rows, rows if columns is None else columns)
    ]
    return e.cast(e.op("Equal", e.op("Unsqueeze", counts[0], e.ints([1])), counts[1]), e.result.dtype)
