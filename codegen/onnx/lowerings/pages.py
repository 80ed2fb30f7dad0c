"""Pages that rows share, read and written by ``GatherND`` and ``ScatterND``.

Both move whole runs of memory: a page of one head, and a token of one head.  ``ScatterND`` copies no pool where its
input and its result are bound to the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tersor.ir.dialect import DIALECT
from tersor.ir.shapes import expression

from ..emitter import Emitter
from ..registry import lowers
from ..sizes import Size


@lowers(DIALECT["read_pages"].overload)
def read_pages(e: Emitter, pool: ir.Value, table: ir.Value) -> ir.Value:
    batch, blocks = e.fake(table).shape
    heads, width = int(e.fake(pool).shape[1]), int(e.fake(pool).shape[3])

    def places() -> ir.Value:
        pages = e.op("Unsqueeze", table, e.ints([1]))
        return _together(e, [pages, _heads(e, heads)], [batch, heads, blocks])

    index = e.shared_value(("pages of heads", id(table), heads), places)
    return e.op("Reshape", e.op("GatherND", pool, index), e.shape([batch, heads, e.result.shape[2], width]))


@lowers(DIALECT["write_pages"].overload)
def write_pages(
    e: Emitter, pool: ir.Value, new: ir.Value, table: ir.Value, past_length: ir.Value
) -> ir.Value:
    batch, count = e.fake(new).shape[0], e.fake(new).shape[2]
    heads, page = int(e.fake(pool).shape[1]), int(e.fake(pool).shape[2])

    def places() -> ir.Value:
        own = e.op("Range", e.const(0), e.sizes.scalar(count), e.const(1))
        number = e.op("Add", e.op("Unsqueeze", past_length, e.ints([1])), own)
        pages = e.op("GatherElements", table, e.op("Div", number, e.const(page)), axis=1)
        slots = e.op("Mod", number, e.const(page))
        parts = [e.op("Unsqueeze", part, e.ints([1])) for part in (pages, slots)]
        return _together(e, [parts[0], _heads(e, heads), parts[1]], [batch, heads, count])

    key = ("places of new tokens", id(table), id(past_length), heads, page, expression(count))
    return e.op("ScatterND", pool, e.shared_value(key, places), new)


def _heads(e: Emitter, heads: int) -> ir.Value:
    """The number of every head, int64 ``[1, heads, 1]``."""
    return e.const([[[head] for head in range(heads)]])


def _together(e: Emitter, parts: Sequence[ir.Value], sizes: Sequence[Size]) -> ir.Value:
    """Indices that are given apart, ``[*sizes, len(parts)]``, each expanded to ``sizes``."""
    shape = e.shape(sizes)
    wide = [e.op("Unsqueeze", e.op("Expand", part, shape), e.ints([-1])) for part in parts]
    return e.op("Concat", *wide, axis=-1)
