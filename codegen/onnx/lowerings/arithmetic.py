"""Elementwise arithmetic with PyTorch's type promotion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch

from ..emitter import FLOATING, Emitter, Operand
from ..peephole import inverted
from ..registry import lowers

aten = torch.ops.aten


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def mul(e: Emitter, left: Operand, right: Operand) -> ir.Value:
    """A product; by ``1 / sqrt(x)`` it is written as the quotient that ONNX Runtime's RMS norm fusion looks for."""
    dtype = e.result.dtype
    if dtype == torch.bool:
        return e.op("And", e.operand(left, dtype), e.operand(right, dtype))
    first, second = e.operand(left, dtype), e.operand(right, dtype)
    root = inverted(second)
    return e.op("Mul", first, second) if root is None else e.op("Div", first, root)


def _scaled(e: Emitter, right: Operand, alpha: float) -> ir.Value:
    value = e.operand(right, e.result.dtype)
    return value if alpha == 1 else e.op("Mul", value, e.const(alpha, e.result.dtype))


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(e: Emitter, left: Operand, right: Operand, alpha: float = 1) -> ir.Value:
    dtype = e.result.dtype
    return e.op("Or" if dtype == torch.bool else "Add", e.operand(left, dtype), _scaled(e, right, alpha))


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def sub(e: Emitter, left: Operand, right: Operand, alpha: float = 1) -> ir.Value:
    return e.op("Sub", e.operand(left, e.result.dtype), _scaled(e, right, alpha))


@lowers(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(e: Emitter, left: Operand, right: Operand, alpha: float = 1) -> ir.Value:
    dtype = e.result.dtype
    value = e.operand(left, dtype)
    return e.op(
        "Sub", e.operand(right, dtype), value if alpha == 1 else e.op("Mul", value, e.const(alpha, dtype))
    )


@lowers(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor)
def div(e: Emitter, left: Operand, right: Operand) -> ir.Value:
    dtype = e.result.dtype
    return e.op("Div", e.operand(left, dtype), e.operand(right, dtype))


@lowers(aten.floor_divide.default, aten.floor_divide.Scalar)
def floor_divide(e: Emitter, left: Operand, right: Operand) -> ir.Value:
    dtype = e.result.dtype
    top, bottom = e.operand(left, dtype), e.operand(right, dtype)
    if dtype in FLOATING:
        return e.op("Floor", e.op("Div", top, bottom))
    # ONNX divides integers towards zero; its Mod takes the sign of the divisor, as Python's does.
    return e.op("Div", e.op("Sub", top, e.op("Mod", top, bottom)), bottom)


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(e: Emitter, left: Operand, right: Operand, rounding_mode: str | None = None) -> Any:
    if rounding_mode is None:
        return div(e, left, right)
    if rounding_mode == "floor":
        return floor_divide(e, left, right)
    return NotImplemented


@lowers(aten.remainder.Tensor, aten.remainder.Scalar)
def remainder(e: Emitter, left: Operand, right: Operand) -> ir.Value:
    dtype = e.result.dtype
    top, bottom = e.operand(left, dtype), e.operand(right, dtype)
    if dtype in FLOATING:
        return e.op("Sub", top, e.op("Mul", e.op("Floor", e.op("Div", top, bottom)), bottom))
    return e.op("Mod", top, bottom)


@lowers(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power(e: Emitter, base: Operand, exponent: Operand) -> ir.Value:
    dtype = e.result.dtype
    if isinstance(exponent, int | float) and exponent == 0.5:
        return e.op("Sqrt", e.operand(base, dtype))
    return e.op("Pow", e.operand(base, dtype), e.operand(exponent, dtype))


@lowers(aten.minimum.default, aten.min.other)
def minimum(e: Emitter, left: Operand, right: Operand) -> ir.Value:
    return e.op("Min", e.operand(left, e.result.dtype), e.operand(right, e.result.dtype))


@lowers(aten.maximum.default, aten.max.other)
def maximum(e: Emitter, left: Operand, right: Operand) -> ir.Value:
    return e.op("Max", e.operand(left, e.result.dtype), e.operand(right, e.result.dtype))


@lowers(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.clamp.Tensor)
def clamp(
    e: Emitter, x: ir.Value, low: Operand | None = None, high: Operand | None = None, **named: Any
) -> ir.Value:
    dtype = e.result.dtype
    low, high = named.get("min", low), named.get("max", high)
    node = e.node
    if node is not None and node.target is aten.clamp_max.default:
        low, high = None, low
    value = e.cast(x, dtype)
    if low is not None:
        value = e.op("Max", value, e.operand(low, dtype))
    return value if high is None else e.op("Min", value, e.operand(high, dtype))


@lowers(aten.rsqrt.default)
def rsqrt(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Reciprocal", e.op("Sqrt", e.cast(x, e.result.dtype)))


_UNARY = {
    aten.neg.default: "Neg",
    aten.abs.default: "Abs",
    aten.sqrt.default: "Sqrt",
    aten.exp.default: "Exp",
    aten.log.default: "Log",
    aten.sin.default: "Sin",
    aten.cos.default: "Cos",
    aten.tanh.default: "Tanh",
    aten.erf.default: "Erf",
    aten.sigmoid.default: "Sigmoid",
    aten.relu.default: "Relu",
    aten.reciprocal.default: "Reciprocal",
    aten.floor.default: "Floor",
    aten.ceil.default: "Ceil",
    aten.round.default: "Round",
    aten.sign.default: "Sign",
    aten.softplus.default: "Softplus",
}


def _unary(kind: str) -> Callable[..., Any]:
    def lower(e: Emitter, x: ir.Value, *rest: Any) -> Any:
        return NotImplemented if rest else e.op(kind, e.cast(x, e.result.dtype))

    return lower


for _target, _kind in _UNARY.items():
    lowers(_target)(_unary(_kind))


@lowers(aten.silu.default)
def silu(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Mul", x, e.op("Sigmoid", x))


@lowers(aten.gelu.default)
def gelu(e: Emitter, x: ir.Value, approximate: str = "none") -> ir.Value:
    return e.op("Gelu", x, approximate=approximate)


@lowers(aten.log1p.default)
def log1p(e: Emitter, x: ir.Value) -> ir.Value:
    """The logarithm of ``1 + x``, corrected by what is lost of a small ``x`` in that sum (Higham 2002)."""
    dtype = e.result.dtype
    value, one = e.cast(x, dtype), e.const(1, dtype)
    sum_ = e.op("Add", value, one)
    part = e.op("Sub", sum_, one)
    # Where nothing is left of it, x is what its logarithm is; and an infinite sum is its own.
    plain = e.op("Or", e.op("Equal", part, e.const(0, dtype)), e.op("IsInf", sum_))
    safe = e.op("Where", plain, one, part)
    small = e.op("Where", e.op("Equal", part, e.const(0, dtype)), value, sum_)
    return e.op("Where", plain, small, e.op("Mul", e.op("Log", sum_), e.op("Div", value, safe)))


@lowers(aten.expm1.default)
def expm1(e: Emitter, x: ir.Value) -> ir.Value:
    """``exp(x) - 1``, corrected by what is lost of a small ``x`` in that difference (Higham 2002)."""
    dtype = e.result.dtype
    value, one = e.cast(x, dtype), e.const(1, dtype)
    power = e.op("Exp", value)
    less = e.op("Sub", power, one)
    # Where nothing is left of x, it is the result; and of what is far from 0 nothing was lost.
    tiny = e.op("Equal", less, e.const(0, dtype))
    far = e.op("Greater", e.op("Abs", value), one)
    log = e.op("Log", e.op("Where", e.op("Or", tiny, far), e.const(2, dtype), power))
    return e.op("Where", tiny, value, e.op("Where", far, less, e.op("Div", e.op("Mul", less, value), log)))


@lowers(aten.log_sigmoid.default)
def log_sigmoid(e: Emitter, x: ir.Value) -> ir.Value:
    """Minus the softplus of minus ``x``, which stays finite where the sigmoid is 0."""
    return e.op("Neg", e.op("Softplus", e.op("Neg", x)))


@lowers(aten.logaddexp.default)
def logaddexp(e: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    """The logarithm of a sum of powers, the larger of which is taken out; neither of them need be finite."""
    dtype = e.result.dtype
    first, second = e.cast(left, dtype), e.cast(right, dtype)
    # Of two equal infinities the difference is no number, and the larger is the result.
    same = e.op("Equal", first, second)
    apart = e.op("Where", same, e.const(0, dtype), e.op("Sub", first, second))
    return e.op("Add", e.op("Max", first, second), e.op("Softplus", e.op("Neg", e.op("Abs", apart))))


@lowers(aten.logaddexp2.default)
def logaddexp2(e: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    dtype = e.result.dtype
    base = e.const(math.log(2), dtype)
    natural = logaddexp(e, *(e.op("Mul", e.cast(side, dtype), base) for side in (left, right)))
    return e.op("Div", natural, base)


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(e: Emitter, x: ir.Value, mask: ir.Value, value: Operand) -> ir.Value:
    dtype = e.result.dtype
    if isinstance(value, float) and math.isfinite(value) and dtype in FLOATING:
        # A number past the dtype's range saturates in PyTorch's own kernel only by error; keep it finite.
        info = torch.finfo(dtype)
        value = max(info.min, min(info.max, value))
    return e.op("Where", e.cast(mask, torch.bool), e.operand(value, dtype), e.cast(x, dtype))


@lowers(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def where(e: Emitter, condition: ir.Value, left: Operand, right: Operand) -> ir.Value:
    dtype = e.result.dtype
    return e.op("Where", e.cast(condition, torch.bool), e.operand(left, dtype), e.operand(right, dtype))
