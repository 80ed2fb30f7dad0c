"""How long a mask must be made before every window and step written into its code has shown."""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ..dialect import is_dialect
from ..operands import arguments
from ..program import Program
from ..same_elements import COPIES, MOVES
from ..shapes import expression
from ._cone import Cone, is_size
from ._pattern import calls

aten = torch.ops.aten

# Slices that keep everything end here.
_NO_END = 2**31 - 1
# These give numbers that grow with the number of tokens.
_COUNTS = (aten.arange, aten.cumsum, aten.sum)
# Of numbers proportional to positions these make others that no power or exponential separates from them, so that
# the distance at which a comparison turns is bounded by the constants involved.
_BOUNDED = (
    *_COUNTS,
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.floor_divide, aten.remainder, aten.neg, aten.abs),
    *(aten.diff, aten.floor, aten.clamp, aten.clamp_min, aten.clamp_max),
    *(aten.maximum, aten.minimum, aten.max, aten.min),
    *(aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.any, aten.all, aten.where, aten.masked_fill),
    *(aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor, aten.bitwise_not),
    *(aten.logical_and, aten.logical_or, aten.logical_xor, aten.logical_not),
    *(aten.__and__, aten.__or__, aten.__xor__),
    *COPIES,
    *MOVES,
    *(aten.expand_as, aten.slice, aten.select, aten.cat, aten.stack, aten.repeat, aten.index, aten.gather),
    *(aten.triu, aten.tril, aten.eye, aten.scalar_tensor),
    *(aten.full, aten.zeros, aten.ones, aten.full_like, aten.zeros_like, aten.ones_like),
    *(aten.new_full, aten.new_zeros, aten.new_ones, aten.dropout),
)  # fmt: skip


def longest_scale(program: Program, cone: Cone, given: fx.Node | None) -> float | None:
    """A length past every distance at which the code of ``cone`` may turn; None where no bound is known.

    Constants that meet positions multiply (``d * 0.02 < 3`` turns at 150), as do those of a size that is computed of
    others by more than sums (``max(64, n // 16)`` turns at 1024); whole numbers that say where to cut (bounds,
    diagonals, what is added to a size) and extents of tables add up.  A fill for hidden keys meets no position and
    does not count.
    """
    sizes: set[sympy.Expr] = set()
    positional: set[fx.Node] = set()
    meet: list[fx.Node] = []
    added, factor = 0.0, 1.0
    for node in cone.nodes:
        if node is given or node.op == "placeholder":
            continue
        if is_size(node):
            value = expression(node.meta["val"])
            sizes.add(value)
            if value.free_symbols:
                positional.add(node)
            continue
        if node.op == "get_attr":
            weight = program.weights[str(node.target)]
            if weight.numel() > 1:
                added += max(weight.shape)
                if _is_scale(weight):
                    positional.add(node)
            continue
        if not calls(node, *_BOUNDED) and not is_dialect(node, "token_mask"):
            return None
        numbers, cuts = _operands(node)
        added += sum(abs(n) for n in cuts if abs(n) < _NO_END)
        if any(n in positional for n in numbers if isinstance(n, fx.Node)):
            meet.append(node)
            if node.meta["val"].dtype != torch.bool:
                positional.add(node)
        elif calls(node, *_COUNTS):
            meet.append(node)
            positional.add(node)
    for size in sizes:
        if _is_sum(size):
            added += sum(_constants(size))
        elif not any(other != size and other.has(size) for other in sizes):
            factor *= math.prod(map(_turn, _constants(size)))
    for node in _with_operands(meet, given):
        factor *= _factor(program, node)
        if not math.isfinite(factor):
            return None
    return added + factor


def _is_sum(size: sympy.Expr) -> bool:
    """Whether it is other sizes, and numbers, added and subtracted."""
    return all(
        term.is_Number or (term.is_Symbol and abs(coefficient) == 1)
        for term, coefficient in size.as_coefficients_dict().items()
    )


def _constants(size: sympy.Expr) -> list[float]:
    """The numbers in it but zeros, each as often as it stands there."""
    return [abs(float(n)) for n in sympy.preorder_traversal(size) if n.is_Number and n != 0]


def _operands(node: fx.Node) -> tuple[list[Any], list[int]]:
    """What the values of ``node`` are computed from, and the whole numbers that only say where."""
    numbers: list[Any] = []
    cuts: list[Any] = []
    kinds = {a.name: str(a.type) for a in node.target._schema.arguments}  # type: ignore[union-attr]
    for name, value in arguments(node).items():
        structural = any(word in kinds[name].lower() for word in ("int", "bool", "layout", "device"))
        fx.node.map_aggregate(value, (cuts if structural else numbers).append)
    return numbers, [n for n in cuts if isinstance(n, int) and not isinstance(n, bool)]


def _with_operands(nodes: list[fx.Node], given: fx.Node | None) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in found or node is given or is_size(node) or node.op == "placeholder":
            continue
        found.add(node)
        if node.op == "call_function":
            pending += [n for n in _operands(node)[0] if isinstance(n, fx.Node)]
    return found


def _factor(program: Program, node: fx.Node) -> float:
    """How far the constants of one node may move a turning point; infinite where they are not finite."""
    if node.op == "get_attr":
        weight = program.weights[str(node.target)]
        if weight.dtype == torch.bool:
            return 1.0
        values = weight.detach().double().abs().flatten()
        values = values[values > 0]
        if not values.numel():
            return 1.0
        return _turn(float(values)) if len(values) == 1 else max(float(values.max()), 1 / float(values.min()))
    numbers = [n for n in _operands(node)[0] if isinstance(n, int | float) and not isinstance(n, bool)]
    return math.prod(_turn(abs(float(n))) for n in numbers if n)


def _turn(number: float) -> float:
    """The distance at which a comparison with ``number`` of a position turns, or of a position over the length."""
    return max(number, 1 / number, 1.0 if number == 1 else 1 / abs(1 - number))


def _is_scale(weight: Tensor) -> bool:
    """Whether a table holds more than two values, as positions do and triangles do not."""
    if weight.dtype == torch.bool:
        return False
    low, high = weight.aminmax()
    return bool(((weight != low) & (weight != high)).any())
