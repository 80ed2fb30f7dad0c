"""Attention over slots that are kept between runs.

Of one row, or one new token a row, ONNX Runtime's ``GroupQueryAttention`` does all of it, writes in place where past
and present are one buffer, and takes time by the slots that are filled; where new tokens are a tree, what each sees
is a bias.  It refuses several new tokens in several rows; there, and with standard operators, the new tokens are
scattered into their slots and attention is written out over all slots.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    tree = _Tree(past_length, depth, ancestors, new, window)
    if e.ops == "ort" and _takes_group_query(e, query, value):
        e.choose("GroupQueryAttention" + (", what a tree sees as a bias" if tree.branches else ""))
        total, last = _lengths(e, past_length, new)
        bias = _bias(e, tree, total) if tree.branches else None
        output, present_key, present_value = e.ops_out(
            "GroupQueryAttention", 3,
            *(heads_as_width(e, x) for x in (query, key, value)), past_key, past_value, last, total,
            None, None, None, bias, *(() if sinks is None else (e.cast(sinks, e.fake(query).dtype),)),
            domain=MICROSOFT, num_heads=int(e.fake(query).shape[1]), kv_num_heads=int(e.fake(key).shape[1]),
            # Its window counts slots, which in a tree are not where the tokens are: the bias has it.
            scale=scale, local_window_size=window if window > 0 and bias is None else None,
            softcap=softcap if softcap > 0 else None,
        )  # fmt: skip
        batch, heads, queries, width = e.fake(query).shape
        return split_heads(e, output, [batch, queries, heads, width]), present_key, present_value
    e.choose("ScatterElements and MatMul over all slots")
    slots = e.shared_value(("slots", id(past_length), expression(new)), lambda: _slots(e, past_length, new))
    present_key = _written(e, past_key, key, slots)
    present_value = _written(e, past_value, value, slots)
    seen = _seen_of_all(e, tree, query, past_key)
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


@dataclass(frozen=True)
class _Tree:
    """The operands that say which slots every new token sees; ``visible_slots`` says how."""

    past_length: ir.Value
    depth: ir.Value | None
    ancestors: ir.Value | None
    new: Any
    window: int

    @property
    def branches(self) -> bool:
        return self.depth is not None or self.ancestors is not None

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for layers that see the same."""
        operands = (id(self.past_length), id(self.depth), id(self.ancestors))
        return (*operands, expression(self.new), self.window)


def _seen_of_all(e: Emitter, tree: _Tree, query: ir.Value, past_key: ir.Value) -> ir.Value:
    """Which of all slots every new token sees, bool ``[batch, 1, new, slots]``."""
    batch, capacity = e.fake(query).shape[0], e.fake(past_key).shape[2]

    def compute() -> ir.Value:
        seen = _seen(e, tree, e.sizes.scalar(capacity))
        e.annotate(seen, e.fake(query).new_empty((batch, 1, tree.new, capacity), dtype=torch.bool))
        return seen

    return e.shared_value(("seen slots", *tree.key, expression(capacity)), compute)


def _bias(e: Emitter, tree: _Tree, total: ir.Value) -> ir.Value:
    """What is added to scores over the slots that are filled then, ``[batch, 1, new, total]``."""

    def compute() -> ir.Value:
        seen = _seen(e, tree, e.op("Cast", total, to=int(ir.DataType.INT64)))
        hidden = torch.finfo(torch.float32).min
        return e.op("Where", seen, e.const(0.0, torch.float32), e.const(hidden, torch.float32))

    return e.shared_value(("bias over slots", *tree.key), compute)


def _seen(e: Emitter, tree: _Tree, slots: ir.Value) -> ir.Value:
    """Which of the first ``slots`` (0-D) slots every new token sees, bool ``[batch, 1, new, slots]``."""
    past = e.op("Unsqueeze", tree.past_length, e.ints([1, 2]))  # [batch, 1, 1]
    slot = e.op("Range", e.const(0), slots, e.const(1))
    own = e.op("Unsqueeze", e.op("Range", e.const(0), e.sizes.scalar(tree.new), e.const(1)), e.ints([0, 2]))
    place = own if tree.depth is None else e.op("Unsqueeze", tree.depth, e.ints([2]))
    position = e.op("Add", past, place)  # [batch, new, 1]
    if tree.ancestors is not None:
        seen = _among(e, tree, slot, past, position, tree.ancestors)
    else:
        # Slots are in the order of tokens.
        seen = e.op("LessOrEqual", slot, position)
        if tree.window > 0:
            first = e.op("Sub", position, e.const(tree.window))
            seen = e.op("And", seen, e.op("Greater", slot, first))
    return e.op("Unsqueeze", seen, e.ints([1]))


def _among(
    e: Emitter, tree: _Tree, slot: ir.Value, past: ir.Value, position: ir.Value, ancestors: ir.Value
) -> ir.Value:
    """The same where new tokens see some of those before them: bool ``[batch, new, slots]``."""
    index = e.op("Sub", slot, past)  # [batch, 1, slots]
    count = e.sizes.scalar(tree.new)
    fits = e.op("And", e.op("GreaterOrEqual", index, e.const(0)), e.op("Less", index, count))
    held = e.op("Min", e.op("Max", index, e.const(0)), e.op("Sub", count, e.const(1)))
    batch, new = e.op("Shape", past, start=0, end=1), e.shape([tree.new])
    wide = e.op("Expand", held, e.op("Concat", batch, new, e.op("Shape", slot), axis=0))
    table = e.op("Expand", ancestors, e.op("Concat", batch, new, new, axis=0))
    among = e.op("And", fits, e.op("GatherElements", table, wide, axis=2))
    before = e.op("Less", slot, past)
    if tree.window > 0:
        own = e.op("GatherElements", e.op("Transpose", position, perm=[0, 2, 1]), held, axis=2)
        where = e.op("Where", before, slot, own)
        near = e.op("Less", e.op("Sub", position, where), e.const(tree.window))
        return e.op("And", near, e.op("Or", before, among))
    return e.op("Or", before, among)
