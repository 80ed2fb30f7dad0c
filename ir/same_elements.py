"""Operators whose result holds the elements of their first operand and no others; packets, for every overload."""

from __future__ import annotations

from torch import fx, ops

aten = ops.aten

# At the same place, perhaps of another dtype or in other memory.
COPIES = (
    aten.to, aten._to_copy, aten.type_as, aten.clone, aten.contiguous, aten.detach, aten.alias, aten.lift_fresh,
    aten.lift_fresh_copy,
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
