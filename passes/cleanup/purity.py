"""Which nodes compute the same result whenever their operands are the same."""

from __future__ import annotations

import torch
from torch import fx


def is_pure(node: fx.Node) -> bool:
    """Whether ``node`` may be computed once, twice or not at all: it draws no random numbers."""
    if node.op != "call_function":
        return node.op == "get_attr"
    target = node.target
    return (
        not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags
    )


def may_replace(node: fx.Node, other: fx.Node) -> bool:
    """Whether uses of ``node`` may read ``other`` instead, given that both hold the same value.

    Every output of a Program stays a value of its own that the graph computes: back ends name outputs, and some
    have no word for one that is an input or a second output as well.
    """
    if not any(user.op == "output" for user in node.users):
        return True
    return other.op == "call_function" and not any(user.op == "output" for user in other.users)
