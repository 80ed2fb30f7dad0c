"""Dtype changes, and the operators that leave a value as it is."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from ..emitter import Emitter
from ..registry import lowers

aten = torch.ops.aten


@lowers(
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
    aten._autocast_to_reduced_precision.default,
    aten._autocast_to_full_precision.default,
)
def to(e: Emitter, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return e.cast(x, e.result.dtype)


@lowers(
    aten.clone.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.positive.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
)
def same(e: Emitter, x: ir.Value, *_: Any, **__: Any) -> ir.Value:
    return x


@lowers(aten.native_dropout.default)
def native_dropout(e: Emitter, x: ir.Value, *_: Any) -> Any:
    return (x, None)
