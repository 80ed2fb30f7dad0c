"""Attention over slots that are kept between runs.

Of one row, or one new token a row, ONNX Runtime's ``GroupQueryAttention`` does all of it, writes in place where past
and present are one buffer, and takes time by the slots that are filled.  It refuses several new tokens in several
rows; there, and with standard operators, the new tokens are scattered into their slots and attention is written out
over all slots.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from tersor.ir.dialect import DIALECT
from tersor.ir.shapes import expression

from ..emitter import MICROSOFT, Emitter
from ..masks import Sight
from ..peephole import heads_as_width, split_heads
from ..registry import lowers
from .attention import probabilities, times_values


@lowers(DIALECT["cached_attention"].overload)
def cached_attention(
    e: Emitter,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    past_key: ir.Value,
    past_value: ir.Value,
    past_length: ir.Value,
    depth: ir.Value | None = None,
    ancestors: ir.Value | None = None,
    sinks: ir.Value | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    new = e.fake(key).shape[2]
    if e.ops == "ort" and depth is None and ancestors is None and _takes_group_query(e, query, value):
        total, last = _lengths(e, past_length, new)
        output, present_key, present_value = e.ops_out(
            "GroupQueryAttention", 3,
            *(heads_as_width(e, x) for x in (query, key, value)), past_key, past_value, last, total,
            None, None, None, None, *(() if sinks is None else (e.cast(sinks, e.fake(query).dtype),)),
            domain=MICROSOFT, num_heads=int(e.fake(query).shape[1]), kv_num_heads=int(e.fake(key).shape[1]),
            scale=scale, local_window_size=window if window > 0 else None,
            softcap=softcap if softcap > 0 else None,
        )  # fmt: skip
        batch, heads, queries, width = e.fake(query).shape
        return split_heads(e, output, [batch, queries, heads, width]), present_key, present_value
    slots = e.shared_value(("slots", id(past_length), expression(new)), lambda: _slots(e, past_length, new))
    present_key = _written(e, past_key, key, slots)
    present_value = _written(e, past_value, value, slots)
    seen = _seen(e, query, past_key, past_length, depth, ancestors, window)
    sight = Sight(query, present_key, seen, None, None, None, False, 0, False, True)
    rows = probabilities(e, sight, sinks, scale, softcap)
    return times_values(e, rows, query, present_value), present_key, present_value


def _takes_group_query(e: Emitter, query: ir.Value, value: ir.Value) -> bool:
    q, v = e.fake(query), e.fake(value)
    single = expression(q.shape[0]) == 1 or expression(q.shape[2]) == 1
    return (
        single
        and q.dtype == torch.float32
        and int(q.shape[3]) == int(v.shape[3])
        and int(q.shape[3]) % 8 == 0
    )


def _lengths(e: Emitter, past_length: ir.Value, new: Any) -> tuple[ir.Value, ir.Value]:
    """The most tokens of a row (0-D int32), and the last of each row (int32 ``[batch]``), the new ones included."""

    def last() -> ir.Value:
        total = e.op("Add", past_length, e.sizes.scalar(new))
        return e.op("Cast", e.op("Sub", total, e.const(1)), to=int(ir.DataType.INT32))

    def total() -> ir.Value:
        most = e.op("ReduceMax", past_length, e.ints([0]), keepdims=0)
        return e.op("Cast", e.op("Add", most, e.sizes.scalar(new)), to=int(ir.DataType.INT32))

    key = (id(past_length), expression(new))
    return e.shared_value(("cached total", *key), total), e.shared_value(("cached last", *key), last)


def _slots(e: Emitter, past_length: ir.Value, new: Any) -> ir.Value:
    """The slot of every new token, int64 ``[batch, 1, new, 1]``."""
    own = e.op("Range", e.const(0), e.sizes.scalar(new), e.const(1))
    slots = e.op("Add", e.op("Unsqueeze", past_length, e.ints([1])), e.op("Unsqueeze", own, e.ints([0])))
    return e.op("Unsqueeze", slots, e.ints([1, 3]))


def _written(e: Emitter, past: ir.Value, new: ir.Value, slots: ir.Value) -> ir.Value:
    key = ("written at", id(slots), *map(expression, e.fake(new).shape))
    index = e.shared_value(key, lambda: e.op("Expand", slots, e.op("Shape", new)))
    present = e.op("ScatterElements", past, index, new, axis=2)
    e.annotate(present, e.fake(past))
    return present


def _seen(
    e: Emitter,
    query: ir.Value,
    past_key: ir.Value,
    past_length: ir.Value,
    depth: ir.Value | None,
    ancestors: ir.Value | None,
    window: int,
) -> ir.Value:
    """Which slots every new token sees, bool ``[batch, 1, new, slots]``; as ``visible_slots`` says."""
    batch, _, new, _ = e.fake(query).shape
    capacity = e.fake(past_key).shape[2]

    def compute() -> ir.Value:
        past = e.op("Unsqueeze", past_length, e.ints([1, 2]))  # [batch, 1, 1]
        slot = e.op("Range", e.const(0), e.sizes.scalar(capacity), e.const(1))
        own = e.op("Unsqueeze", e.op("Range", e.const(0), e.sizes.scalar(new), e.const(1)), e.ints([0, 2]))
        place = own if depth is None else e.op("Unsqueeze", depth, e.ints([2]))
        position = e.op("Add", past, place)  # [batch, new, 1]
        if ancestors is None:
            # Slots are in the order of tokens.
            seen = e.op("LessOrEqual", slot, position)
            if window > 0:
                seen = e.op("And", seen, e.op("Greater", slot, e.op("Sub", position, e.const(window))))
        else:
            seen = _among(e, slot, past, position, ancestors, new, capacity, window)
        seen = e.op("Unsqueeze", seen, e.ints([1]))
        e.annotate(seen, e.fake(query).new_empty((batch, 1, new, capacity), dtype=torch.bool))
        return seen

    key = (id(past_length), id(depth), id(ancestors), expression(new), expression(capacity), window)
    return e.shared_value(("seen slots", *key), compute)


def _among(
    e: Emitter,
    slot: ir.Value,
    past: ir.Value,
    position: ir.Value,
    ancestors: ir.Value,
    new: Any,
    capacity: Any,
    window: int,
) -> ir.Value:
    """The same where new tokens see some of those before them: a tree of them, or several."""
    index = e.op("Sub", slot, past)  # [batch, 1, slots]
    count = e.sizes.scalar(new)
    fits = e.op("And", e.op("GreaterOrEqual", index, e.const(0)), e.op("Less", index, count))
    held = e.op("Min", e.op("Max", index, e.const(0)), e.op("Sub", count, e.const(1)))
    batch = e.op("Shape", past, start=0, end=1)
    wide = e.op("Expand", held, e.op("Concat", batch, e.shape([new, capacity]), axis=0))
    table = e.op("Expand", ancestors, e.op("Concat", batch, e.shape([new, new]), axis=0))
    among = e.op("And", fits, e.op("GatherElements", table, wide, axis=2))
    before = e.op("Less", slot, past)
    if window > 0:
        own = e.op("GatherElements", e.op("Transpose", position, perm=[0, 2, 1]), held, axis=2)
        place = e.op("Where", before, slot, own)
        near = e.op("Less", e.op("Sub", position, place), e.const(window))
        return e.op("And", near, e.op("Or", before, among))
    return e.op("Or", before, among)
