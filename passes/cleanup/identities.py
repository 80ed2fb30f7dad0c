"""Operators that return their operand: dropout when not training, copies, casts to the same type, full slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.same_elements import COPIES
from tersor.ir.shapes import same_shape

from .equivalence import Equivalence
from .layout import permutation

aten = torch.ops.aten


@dataclass(frozen=True)
class Identities(Equivalence):
    """Remove operators that return their operand: dropout, copies, casts to the same type, full-range slices."""

    name: ClassVar[str] = "identities"

    def equal_to(self, node: fx.Node) -> fx.Node | None:
        rule = RULES.get(getattr(node.target, "overloadpacket", None))
        source = node.args[0] if node.args else None
        if rule is None or not isinstance(source, fx.Node) or not isinstance(source.meta["val"], Tensor):
            return None
        return source if _same_type(source, node) and rule(node) else None


def _always(_: fx.Node) -> bool:
    return True


def _not_training(node: fx.Node) -> bool:
    return _argument(node, 2, "train") is False


def _other_is(number: int) -> Callable[[fx.Node], bool]:
    def rule(node: fx.Node) -> bool:
        other = _argument(node, 1, "other")
        # A quotient that is rounded is none of its operands.
        rounds = node.kwargs.get("rounding_mode") is not None
        return isinstance(other, int | float) and other == number and not rounds

    return rule


def _same_shape(node: fx.Node) -> bool:
    return same_shape(node.args[0].meta["val"].shape, node.meta["val"].shape)  # type: ignore[union-attr]


def _whole_slice(node: fx.Node) -> bool:
    # With a step of 1, as many entries as there were can only be all of them.
    return _argument(node, 4, "step", 1) == 1 and _same_shape(node)


def _same_order(node: fx.Node) -> bool:
    order = permutation(node)
    return order is not None and list(order) == sorted(order)


def _same_type(source: fx.Node, node: fx.Node) -> bool:
    before, after = source.meta["val"], node.meta["val"]
    return isinstance(after, Tensor) and (before.dtype, before.device) == (after.dtype, after.device)


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if position < len(node.args) else node.kwargs.get(name, default)


# Whether the operator returns its operand, given that dtype and device are the operand's.
RULES: dict[Any, Callable[[fx.Node], bool]] = {
    **dict.fromkeys((aten.dropout, aten.feature_dropout, aten.alpha_dropout), _not_training),
    **dict.fromkeys(COPIES, _always),
    **dict.fromkeys((aten.add, aten.sub), lambda node: _other_is(0)(node) and _same_shape(node)),
    **dict.fromkeys((aten.mul, aten.div, aten.pow), lambda node: _other_is(1)(node) and _same_shape(node)),
    **dict.fromkeys((aten.reshape, aten.flatten, aten.expand, aten.squeeze, aten.repeat), _same_shape),
    **dict.fromkeys((aten.transpose, aten.permute, aten.t), _same_order),
    aten.slice: _whole_slice,
}
