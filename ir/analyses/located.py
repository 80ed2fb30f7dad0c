"""Where the token axis of a value goes, without asking whether anything on the way could do with fewer tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from ..dialect import Role, traits_of
from .token_axis import NONE, Context, Dims, NotTokenwise, apply_rule
from .token_rules import each_result


class Located(Context):
    """Follows the token axis only to say where it is: what cannot be followed holds no tokens."""

    def side(self, user: fx.Node, value: Any, dims: Iterable[int], rank: int | None = None) -> None:
        return

    def size(self, user: fx.Node, argument: int, position: int) -> None:
        return

    def follow(self, node: fx.Node) -> None:
        """Note the token dims of ``node``, whose operands have been followed."""
        attends = traits_of(node).role is Role.ATTENDS
        if attends and all(self._holds_tokens(operand) for operand in node.args[:3]):
            # Where its tokens are depends on no mask, though one computed from the stream could not be reduced.
            self.found[node] = each_result(node, frozenset({2}))
            return
        try:
            self.found[node] = apply_rule(self, node)
        except NotTokenwise:
            self.found[node] = self.lost(node)

    def lost(self, node: fx.Node) -> Dims:
        """The token dims of a node whose rule refuses, or that has none."""
        return NONE

    def _holds_tokens(self, operand: Any) -> bool:
        return self.dims(operand) == frozenset({2}) and self.fold(operand) is None
