"""Chains of transposes and reshapes as one, or as none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .equivalence import Cheaper, Equivalence

aten = torch.ops.aten

# Operators that keep the elements and their order; a reshape after one of them sees no difference.
_RESHAPES = {aten.reshape, aten.flatten, aten.unsqueeze, aten.squeeze, aten.unflatten}


@dataclass(frozen=True)
class Layout(Equivalence):
    """Join transposes and permutes of each other, and reshapes of reshapes."""

    name: ClassVar[str] = "layout"

    def equal_to(self, node: fx.Node) -> Cheaper | None:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_function":
            return None
        outer, inner = permutation(node), permutation(source)
        origin: Any = source.args[0]
        if outer is not None and inner is not None:
            order = [inner[dim] for dim in outer]
            if order == sorted(order):
                return origin  # type: ignore[no-any-return]
            return lambda g: g.call(aten.permute.default, origin, order)
        if node.target is aten.reshape.default and packet(source) in _RESHAPES:
            return lambda g: g.call(aten.reshape.default, origin, node.args[1])
        return None


def permutation(node: fx.Node) -> Sequence[int] | None:
    """For a node that only reorders dims: which dim of the operand each dim of the result is; else None."""
    if node.op != "call_function" or packet(node) not in (aten.permute, aten.transpose, aten.t):
        return None
    rank = node.meta["val"].dim()
    order = list(range(rank))
    if node.target is aten.permute.default:
        return [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr,arg-type]
    if node.target is aten.transpose.int:
        a, b = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
        return order
    return order[::-1] if node.target is aten.t.default else None


def packet(node: fx.Node) -> Any:
    """Its operator, whichever overload; a function that has none itself."""
    return getattr(node.target, "overloadpacket", node.target)
