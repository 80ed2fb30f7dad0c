"""Operators whose result holds the elements of their first operand and no others, or none of them; as packets."""

from __future__ import annotations

from torch import fx, ops

aten = ops.aten

# At the same place, perhaps of another dtype or in other memory.
COPIES = (
    aten.to, aten._to_copy, aten.type_as, aten.clone, aten.contiguous, aten.detach, aten.alias, aten.lift_fresh,
    aten.lift_fresh_copy,
)  # fmt: skip
# None of its elements: they read the shape of their first operand alone.
SHAPE_ONLY = (
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_full,
    aten.new_empty, aten.copy,
)  # fmt: skip
# In another shape or order, perhaps several times.
MOVES = (
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.unsqueeze, aten.squeeze,
    aten.expand, aten.transpose, aten.permute, aten.t,
)  # fmt: skip


def origin(node: fx.Node) -> fx.Node:
    """The node whose elements ``node`` holds, behind all copies and moves."""
    while getattr(node.target, "overloadpacket", None) in (*COPIES, *MOVES):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node
