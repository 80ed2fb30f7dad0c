"""Rotary position embedding (Su et al. 2021) as ONNX Runtime's own operator, for ``ops="ort"``.

Written out it is six operators and two transposes, for the queries and the keys of every layer: in a step of one token
most of what is not matrices.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from tersor.ir.operands import arguments
from tersor.ir.shapes import expression

from ..emitter import MICROSOFT, Emitter
from ..peephole import heads_as_width, split_heads
from .forms import call, either_way, is_float32, uncast
from .registry import Values, fuses

aten = torch.ops.aten

# Of equal halves these make equal halves.
_ELEMENTWISE = (aten.cos.default, aten.sin.default, aten.neg.default)
_BY_NUMBER = (aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor)
# As long as the last dim keeps its size.
_ROWS = (aten.reshape.default, aten.view.default, aten.expand.default, aten.squeeze.dim)


@fuses(aten.add.Tensor)
def rotary(e: Emitter, node: fx.Node, value: Values) -> ir.Value | None:
    """``x * cos + cat(-x[d/2:], x[:d/2]) * sin`` of ``x [batch, heads, tokens, d]``, the angles in equal halves."""
    if e.ops != "ort" or not is_float32(node) or node.meta["val"].dim() != 4:
        return None
    for straight, turned in either_way(node):
        found = _rotated(straight, turned)
        if found is None:
            continue
        x, cosine, sine = found
        batch, heads, tokens, width = x.meta["val"].shape
        same = cosine.meta["val"].shape == sine.meta["val"].shape
        # The operator has them as an attribute.
        fixed = isinstance(heads, int)
        if not same or not fixed or not all(_fits(angle, batch, tokens, width) for angle in (cosine, sine)):
            continue
        places = _places(e, cosine, batch, tokens)
        tables = [_table(e, value(angle), int(width)) for angle in (cosine, sine)]
        rows = heads_as_width(e, value(x))
        turned_rows = e.op("RotaryEmbedding", rows, places, *tables, domain=MICROSOFT, num_heads=int(heads))
        return split_heads(e, turned_rows, [batch, tokens, heads, width])
    return None


def _rotated(straight: Any, turned: Any) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """What is rotated, and by which cosines and sines."""
    first, second = call(straight, aten.mul.Tensor), call(turned, aten.mul.Tensor)
    for x, cosine in () if first is None else either_way(first):
        for half_turn, sine in () if second is None else either_way(second):
            if not all(isinstance(n, fx.Node) for n in (x, cosine, half_turn, sine)):
                continue
            if _is_half_turn(half_turn, x):
                return x, cosine, sine
    return None


def _is_half_turn(node: Any, x: fx.Node) -> bool:
    """Whether ``node`` is the second half of ``x`` with its sign changed, and the first behind it."""
    whole = call(node, aten.cat.default)
    width = x.meta["val"].shape[-1]
    if whole is None or len(whole.args[0]) != 2 or not _is_last(arguments(whole)["dim"], x):  # type: ignore[arg-type]
        return False
    negative, first = whole.args[0]  # type: ignore[misc]
    second = call(negative, aten.neg.default)
    return (
        isinstance(width, int)
        and width % 2 == 0
        and second is not None
        and _is_part(second.args[0], x, width // 2, width)
        and _is_part(first, x, 0, width // 2)
    )


def _is_part(node: Any, x: fx.Node, start: int, end: int) -> bool:
    part = call(node, aten.slice.Tensor)
    if part is None or uncast(part.args[0]) is not uncast(x):
        return False
    given, width = arguments(part), x.meta["val"].shape[-1]
    from_, to = given["start"] or 0, given["end"]
    to = width if to is None else to
    if not _is_last(given["dim"], x) or not isinstance(from_, int) or not isinstance(to, int):
        return False
    return given["step"] == 1 and slice(from_, to).indices(width) == (start, end, 1)


def _is_last(dim: Any, x: fx.Node) -> bool:
    return bool(dim % x.meta["val"].dim() == x.meta["val"].dim() - 1)


def _fits(angle: fx.Node, batch: Any, tokens: Any, width: Any) -> bool:
    """Whether it is ``[batch or 1, 1, tokens, d]`` of equal halves."""
    shape = [expression(size) for size in angle.meta["val"].shape]
    rest = [1, expression(tokens), expression(width)]
    return (
        len(shape) == 4
        and shape[0] in (1, expression(batch))
        and shape[1:] == rest
        and is_float32(angle)
        and _has_equal_halves(angle)
    )


def _has_equal_halves(node: Any) -> bool:
    """Whether the second half of the last dim is the first again."""
    while isinstance(node, fx.Node):
        node = uncast(node)
        last = node.meta["val"].dim() - 1
        if node.target is aten.cat.default:
            parts = list(node.args[0])
            return len(parts) == 2 and parts[0] is parts[1] and _is_last(arguments(node)["dim"], node)
        if node.target is aten.unsqueeze.default:
            if node.args[1] % (last + 1) == last:
                return False
        elif node.target in _ROWS:
            before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
            if not len(before) or not isinstance(after[-1], int) or before[-1] != after[-1] or after[-1] < 2:
                return False
        elif node.target in _BY_NUMBER:
            if isinstance(node.args[1], fx.Node):
                return False
        elif node.target not in _ELEMENTWISE:
            return False
        node = node.args[0]
    return False


def _table(e: Emitter, angle: ir.Value, width: int) -> ir.Value:
    """The first half of cosines or sines, a row for each place."""

    def half() -> ir.Value:
        first = e.op("Slice", angle, e.ints([0]), e.ints([width // 2]), e.ints([3]))
        return e.op("Reshape", first, e.ints([-1, width // 2]))

    return e.shared_value(("first half", angle.name), half)


def _places(e: Emitter, angle: fx.Node, batch: Any, tokens: Any) -> ir.Value:
    """Which row of the table belongs to each token, ``[batch, tokens]``."""
    shape = angle.meta["val"].shape
    shared = expression(shape[0]) == 1

    def places() -> ir.Value:
        count = e.sizes.scalar(tokens if shared else batch * tokens)
        rows = e.op("Range", e.const(0), count, e.const(1))
        both = e.shape([batch, tokens])
        return e.op("Expand", rows, both) if shared else e.op("Reshape", rows, both)

    return e.shared_value(("places", shared, expression(batch), expression(tokens)), places)
