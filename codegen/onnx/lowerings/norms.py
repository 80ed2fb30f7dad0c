"""Normalisations and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from ..emitter import Emitter
from ..peephole import keep_sum_apart
from ..registry import lowers

aten = torch.ops.aten


@lowers(aten.layer_norm.default)
def layer_norm(
    e: Emitter,
    x: ir.Value,
    normalized: Sequence[int],
    weight: ir.Value | None = None,
    bias: ir.Value | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> ir.Value:
    if weight is None:
        weight = e.const(torch.ones([int(n) for n in normalized]), e.result.dtype)
    if e.ops == "ort":
        keep_sum_apart(x)
    return e.op("LayerNormalization", x, weight, bias, axis=-len(normalized), epsilon=float(eps))


@lowers(aten.rms_norm.default)
def rms_norm(
    e: Emitter,
    x: ir.Value,
    normalized: Sequence[int],
    weight: ir.Value | None = None,
    eps: float | None = None,
) -> ir.Value:
    """Written as ONNX Runtime's own fusion expects it, because ``RMSNormalization`` only comes with opset 23."""
    dtype = e.result.dtype
    axes = e.ints(list(range(-len(normalized), 0)))
    square = e.op("Pow", x, e.const(2, dtype))
    epsilon = torch.finfo(dtype).eps if eps is None else eps
    root = e.op("Sqrt", e.op("Add", e.op("ReduceMean", square, axes), e.const(epsilon, dtype)))
    result = e.op("Div", x, root)
    return result if weight is None else e.op("Mul", result, weight)


@lowers(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
def softmax(e: Emitter, x: ir.Value, dim: int, *_: Any, **__: Any) -> Any:
    if e.node is not None and e.node.target is aten._safe_softmax.default:
        return NotImplemented
    return e.op("Softmax", e.cast(x, e.result.dtype), axis=dim)


@lowers(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(e: Emitter, x: ir.Value, dim: int, *_: Any, **__: Any) -> ir.Value:
    return e.op("LogSoftmax", e.cast(x, e.result.dtype), axis=dim)
