"""Where one axis of a value goes when it is reshaped, even while it shares a dim with others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy

from ..shapes import expression

Expr = Any  # sympy ships no types


@dataclass(frozen=True)
class Fold:
    """A dim of size ``outer * axis * inner``: the axis shares it with ``outer`` before and ``inner`` behind it."""

    outer: Expr
    inner: Expr


WHOLE = Fold(sympy.Integer(1), sympy.Integer(1))


def place_after(
    before: Sequence[Any], after: Sequence[Any], dim: int, fold: Fold = WHOLE
) -> tuple[int, Fold] | None:
    """The dim of ``after`` that holds the axis in ``dim`` of ``before``, and what it shares it with.

    None where the reshape takes the axis itself apart.  A dim of its own is preferred to one that is shared, which
    only matters beside dims of size 1.
    """
    ahead = product(before[:dim]) * fold.outer
    reach = product(before[: dim + 1])
    if fold.inner != 1:
        reach = _quotient(reach, fold.inner)
    found: tuple[int, Fold] | None = None
    leading: Expr = sympy.Integer(1)
    for place, size in enumerate(after):
        outer = _quotient(ahead, leading)
        leading = leading * expression(size)
        inner = _quotient(leading, reach)
        if outer is None or inner is None:
            continue
        here = Fold(outer, inner)
        if here == WHOLE:
            return place, here
        found = found or (place, here)
    return found


def product(sizes: Iterable[Any]) -> Expr:
    """Elements of a shape."""
    result: Expr = sympy.Integer(1)
    for size in sizes:
        result = result * expression(size)
    return result


@cache
def _quotient(left: Expr, right: Expr) -> Expr | None:
    """``left / right`` where that is a whole number for every value of the symbols, else None."""
    ratio = left / right
    if ratio.is_Rational:
        return ratio if ratio.is_Integer else None
    if ratio.has(sympy.Add):
        # Products cancel by themselves; sums, such as the counts of kept tokens, do not.
        ratio = sympy.cancel(ratio)
    _, denominator = sympy.fraction(ratio)
    return ratio if denominator == 1 else None
