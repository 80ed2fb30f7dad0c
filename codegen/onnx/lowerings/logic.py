"""Comparisons and boolean algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from ..emitter import Emitter, Operand
from ..registry import lowers

aten = torch.ops.aten


def _common(e: Emitter, left: Operand, right: Operand) -> torch.dtype:
    """The dtype in which PyTorch compares the two."""
    # A size promotes as any integer does; reading its number would fix it.
    first, second = (
        e.fake(x) if isinstance(x, ir.Value) else 1 if isinstance(x, torch.SymInt) else x
        for x in (left, right)
    )
    return torch.result_type(first, second)


def _comparison(kind: str, negated: bool = False) -> Callable[..., ir.Value]:
    def lower(e: Emitter, left: Operand, right: Operand) -> ir.Value:
        dtype = _common(e, left, right)
        if dtype == torch.bool and kind != "Equal":
            dtype = torch.int32
        result = e.op(kind, e.operand(left, dtype), e.operand(right, dtype))
        return e.op("Not", result) if negated else result

    return lower


for _name, _kind, _negated in (
    ("eq", "Equal", False),
    ("ne", "Equal", True),
    ("lt", "Less", False),
    ("le", "LessOrEqual", False),
    ("gt", "Greater", False),
    ("ge", "GreaterOrEqual", False),
):
    _packet = getattr(aten, _name)
    lowers(_packet.Tensor, _packet.Scalar)(_comparison(_kind, _negated))


def _logical(kind: str) -> Callable[..., ir.Value]:
    def lower(e: Emitter, left: Operand, right: Operand) -> ir.Value:
        return e.op(kind, e.operand(left, torch.bool), e.operand(right, torch.bool))

    return lower


lowers(aten.logical_and.default)(_logical("And"))
lowers(aten.logical_or.default)(_logical("Or"))
lowers(aten.logical_xor.default)(_logical("Xor"))


def _bitwise(kind: str) -> Callable[..., ir.Value]:
    def lower(e: Emitter, left: Operand, right: Operand) -> ir.Value:
        dtype = e.result.dtype
        name = kind if dtype == torch.bool else f"Bitwise{kind}"
        return e.op(name, e.operand(left, dtype), e.operand(right, dtype))

    return lower


for _names, _kind in (
    (("bitwise_and", "__and__"), "And"),
    (("bitwise_or", "__or__"), "Or"),
    (("bitwise_xor",), "Xor"),
):
    for _name in _names:
        _packet = getattr(aten, _name)
        lowers(_packet.Tensor, _packet.Scalar)(_bitwise(_kind))


@lowers(aten.logical_not.default)
def logical_not(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Not", e.cast(x, torch.bool))


@lowers(aten.bitwise_not.default)
def bitwise_not(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Not" if e.result.dtype == torch.bool else "BitwiseNot", x)


@lowers(aten.isnan.default)
def isnan(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("IsNaN", x)


@lowers(aten.isinf.default)
def isinf(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("IsInf", x)


def _reduced(e: Emitter, x: ir.Value, dims: list[int] | None, keepdim: bool, kind: str) -> ir.Value:
    """``any`` and ``all`` as the largest and smallest of 0 and 1; ReduceMax takes no bool before opset 20's end."""
    number = e.cast(e.cast(x, torch.bool), torch.int32)
    axes = None if dims is None else e.ints(dims)
    return e.cast(e.op(kind, number, axes, keepdims=int(keepdim)), torch.bool)


@lowers(aten.any.default, aten.any.dim, aten.any.dims)
def any_(e: Emitter, x: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
    return _reduced(e, x, [dim] if isinstance(dim, int) else dim, keepdim, "ReduceMax")


@lowers(aten.all.default, aten.all.dim, aten.all.dims)
def all_(e: Emitter, x: ir.Value, dim: Any = None, keepdim: bool = False) -> ir.Value:
    return _reduced(e, x, [dim] if isinstance(dim, int) else dim, keepdim, "ReduceMin")
