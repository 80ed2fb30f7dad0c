"""Symbolic sizes as ONNX values: every size expression is computed once, from ``Shape`` of an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import sympy
import torch
from torch.utils._sympy import functions as sf

from tersor.ir.shapes import expression

if TYPE_CHECKING:
    from .emitter import Emitter

Size = int | torch.SymInt


class Sizes:
    """Values of size expressions, each a 1-D tensor of one element, int64 unless the expression is a float.

    Floats are doubles, as Python's are: a root or a share that is a whole number must stay one when it is truncated.
    """

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._source: dict[sympy.Symbol, Callable[[], ir.Value]] = {}
        self._values: dict[sympy.Expr, ir.Value] = {}
        self._scalars: dict[sympy.Expr, ir.Value] = {}

    def define(self, value: ir.Value, sizes: Sequence[Size]) -> None:
        """Let the dims of ``value`` be the source of the symbols that stand alone in them."""
        for dim, size in enumerate(sizes):
            expr = expression(size)
            if isinstance(expr, sympy.Symbol) and expr not in self._source:
                self._source[expr] = lambda dim=dim: self._emitter.op("Shape", value, start=dim, end=dim + 1)  # type: ignore[misc]

    def define_scalar(self, size: Size, value: ir.Value) -> None:
        """Let a 0-D int64 value be the source of an (unbacked) symbol, as ``item()`` makes them."""
        expr = expression(size)
        if isinstance(expr, sympy.Symbol) and expr not in self._source:
            self._source[expr] = lambda: self._emitter.op("Reshape", value, self._emitter.ints([1]))

    def knows(self, size: Any) -> bool:
        """Whether every symbol of the size has a source."""
        return all(symbol in self._source for symbol in symbolic(size).free_symbols)

    def vector(self, sizes: Sequence[Size]) -> ir.Value:
        """Several sizes as one 1-D int64 value; runs of fixed sizes are one constant."""
        parts: list[ir.Value] = []
        run: list[int] = []
        for size in sizes:
            expr = symbolic(size)
            if expr.is_Integer:
                run.append(int(expr))
                continue
            if run:
                parts.append(self._emitter.ints(run))
                run = []
            parts.append(self.value(expr))
        if run or not parts:
            parts.append(self._emitter.ints(run))
        return parts[0] if len(parts) == 1 else self._emitter.op("Concat", *parts, axis=0)

    def scalar(self, size: Any) -> ir.Value:
        """A size as a 0-D value."""
        expr = symbolic(size)
        if expr.is_Integer:
            return self._emitter.const(int(expr))
        if expr not in self._scalars:
            value = self.value(expr)
            result = self._emitter.op("Squeeze", value, self._emitter.ints([0]))
            result.type = value.type
            self._scalars[expr] = result
        return self._scalars[expr]

    def value(self, expr: sympy.Expr) -> ir.Value:
        """The expression as a 1-D value of one element.

        Raises:
            LoweringError: a symbol without a source, or a function that sizes do not use.
        """
        if expr.is_Integer:
            return self._emitter.ints([int(expr)])
        if expr not in self._values:
            self._values[expr] = self._compute(expr)
        return self._values[expr]

    def _compute(self, expr: sympy.Expr) -> ir.Value:
        op = self._emitter.op
        if isinstance(expr, sympy.Symbol):
            if expr not in self._source:
                raise self._emitter.fail(
                    f"the size or number {expr} is read from a tensor while the model runs, as item() does: keep it a "
                    "tensor"
                )
            return _typed(self._source[expr](), ir.DataType.INT64)
        if expr.is_Float or expr.is_Rational:
            return _typed(self._emitter.const([float(expr)], torch.float64), ir.DataType.DOUBLE)
        if isinstance(expr, sf.FloorDiv | sf.CleanDiv):
            top, bottom = self.value(expr.args[0]), self.value(expr.args[1])
            if not expr.args[0].is_nonnegative:
                # ONNX divides integers towards zero and takes the remainder's sign from the divisor.
                top = op("Sub", top, op("Mod", top, bottom))
            return _typed(op("Div", top, bottom), ir.DataType.INT64)
        if isinstance(expr, sf.Mod | sf.PythonMod | sympy.Mod):
            return _typed(op("Mod", *map(self.value, expr.args)), ir.DataType.INT64)
        if isinstance(expr, sf.IntTrueDiv | sf.FloatTrueDiv):
            return _typed(op("Div", *(self._float(a) for a in expr.args)), ir.DataType.DOUBLE)
        if isinstance(expr, sf.ToFloat):
            return self._float(expr.args[0])
        if isinstance(expr, sf.FloatPow):
            return _typed(op("Pow", *(self._float(a) for a in expr.args)), ir.DataType.DOUBLE)
        if isinstance(expr, sf.OpaqueUnaryFn_sqrt):
            return _typed(op("Sqrt", self._float(expr.args[0])), ir.DataType.DOUBLE)
        if isinstance(expr, sf.PowByNatural):
            return _typed(op("Pow", *map(self.value, expr.args)), ir.DataType.INT64)
        if isinstance(expr, sympy.Abs):
            value = self.value(expr.args[0])
            return _typed(op("Abs", value), value.dtype)
        if isinstance(expr, sf.FloorToInt | sf.TruncToInt | sf.CeilToInt | sf.RoundToInt):
            value = self._float(expr.args[0])
            rounding = {sf.FloorToInt: "Floor", sf.CeilToInt: "Ceil", sf.RoundToInt: "Round"}.get(type(expr))
            value = op(rounding, value) if rounding else value
            return _typed(op("Cast", value, to=int(ir.DataType.INT64)), ir.DataType.INT64)
        if isinstance(expr, sympy.Max | sf.Max):
            return self._fold("Max", expr.args)
        if isinstance(expr, sympy.Min | sf.Min):
            return self._fold("Min", expr.args)
        if isinstance(expr, sympy.Add):
            return self._fold("Add", expr.args)
        if isinstance(expr, sympy.Mul):
            return self._product(expr)
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and int(expr.exp) > 0:
            return self._fold("Mul", [expr.base] * int(expr.exp))
        raise self._emitter.fail(f"the size {expr} uses {type(expr).__name__}, which has no ONNX form here")

    def _product(self, expr: sympy.Mul) -> ir.Value:
        top, bottom = sympy.fraction(expr)
        if bottom == 1:
            return self._fold("Mul", expr.args)
        # A rational factor in an integer expression divides without remainder.
        return _typed(self._emitter.op("Div", self.value(top), self.value(bottom)), ir.DataType.INT64)

    def _fold(self, kind: str, args: Sequence[sympy.Expr]) -> ir.Value:
        values = [self.value(a) for a in args]
        if any(v.dtype == ir.DataType.DOUBLE for v in values):
            values = [self._float(a) for a in args]
        result = values[0]
        for value in values[1:]:
            result = _typed(self._emitter.op(kind, result, value), value.dtype)
        return result

    def _float(self, expr: sympy.Expr) -> ir.Value:
        value = self.value(expr)
        if value.dtype == ir.DataType.DOUBLE:
            return value
        return _typed(self._emitter.op("Cast", value, to=int(ir.DataType.DOUBLE)), ir.DataType.DOUBLE)


def symbolic(size: Any) -> sympy.Expr:
    """A size, float size or plain number as a sympy expression."""
    if isinstance(size, sympy.Expr):
        return size
    if isinstance(size, torch.SymFloat):
        return size.node.expr
    return sympy.Float(size) if isinstance(size, float) else expression(size)


def _typed(value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    if dtype is not None:
        value.type = ir.TensorType(dtype)
    return value
