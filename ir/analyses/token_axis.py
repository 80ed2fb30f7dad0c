"""Which dim of every value indexes tokens, and what would break if there were fewer of them.

Starting from one value of the residual stream, the axis is followed forward operator by operator (rules in
``token_rules``) up to where the stream leaves the last block.  The result is the legality proof of token dropping
and its work list: values from outside that line up with the token axis and must be reduced with it, and literal
sizes that stand for the token count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import fx

from ..errors import RefusedError
from ..program import Program
from ..shapes import expression

Dims = frozenset[int]


@dataclass(frozen=True)
class SideUse:
    """A value from outside the region that an operator lines up with the token axis.

    Attributes:
        user: the node inside the region that reads it.  value: the node outside.
        dims: its dims that index tokens.
        rank: dims the value has after it is broadcast to line up with the user's result (batch first).
    """

    user: fx.Node
    value: fx.Node
    dims: tuple[int, ...]
    rank: int


@dataclass(frozen=True)
class SizeUse:
    """A size argument of ``user`` that stands for the token count, at ``args[argument][position]``."""

    user: fx.Node
    argument: int
    position: int


@dataclass
class TokenAxis:
    """The token axis of a region.

    Attributes:
        dims: token dims of every value in the region (a tuple of them for a node with several results).
        sides: outside values to reduce.  sizes: size arguments to rewrite.
        mixing: nodes whose results combine different tokens other than by attention.
        attention: attention nodes of the region.
    """

    dims: dict[fx.Node, Any] = field(default_factory=dict)
    sides: list[SideUse] = field(default_factory=list)
    sizes: list[SizeUse] = field(default_factory=list)
    mixing: list[fx.Node] = field(default_factory=list)
    attention: list[fx.Node] = field(default_factory=list)


class NotTokenwise(RefusedError):
    """An operator cannot be carried over to fewer tokens."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        self.node, self.reason = node, reason
        where = node.meta.get("layer") or "the model's top level"
        super().__init__(f"{node.name} ({node.target}, in {where}): {reason}")


Rule = Callable[["Context", fx.Node], Any]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operator packets or overloads."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


@dataclass
class Context:
    """What a rule sees: the axis found so far and the size of the token axis."""

    axis: TokenAxis
    token_size: Any
    region: set[fx.Node]

    def dims(self, value: Any) -> Dims:
        """Token dims of an operand; empty for values from outside the region."""
        found = self.axis.dims.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, frozenset) else frozenset()

    def inside(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.axis.dims

    def is_token_size(self, size: Any) -> bool:
        return bool(expression(size) == expression(self.token_size))

    def side(self, user: fx.Node, value: Any, dims: Iterable[int], rank: int | None = None) -> None:
        """Record that ``user`` lines the outside ``value`` up with the token axis at ``dims``."""
        if not isinstance(value, fx.Node) or self.inside(value):
            return
        shape = value.meta["val"].shape
        wanted = tuple(sorted(d for d in dims if not _is_one(shape[d])))
        for dim in wanted:
            if not self.is_token_size(shape[dim]):
                raise NotTokenwise(
                    user,
                    f"{value.name} has {shape[dim]} entries where the stream has {self.token_size} tokens",
                )
        if wanted:
            self.axis.sides.append(SideUse(user, value, wanted, rank or len(shape)))

    def size(self, user: fx.Node, argument: int, position: int) -> None:
        self.axis.sizes.append(SizeUse(user, argument, position))


def _is_one(size: Any) -> bool:
    return expression(size) == 1


def region_between(program: Program, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """Nodes after ``start`` and up to ``end`` that depend on ``start``, in graph order.

    Raises:
        NotTokenwise: a value of the region is read beyond ``end`` other than through ``end``.
    """
    below: set[fx.Node] = {start}
    region: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op == "call_function" and any(n in below for n in node.all_input_nodes):
            below.add(node)
            region.append(node)
    above = {end}
    for node in reversed(region):
        if node in above:
            above.update(node.all_input_nodes)
    inside = [node for node in region if node in above]
    members = set(inside) | {start}
    for node in members - {end}:
        for user in node.users:
            if user not in members and user.op == "output":
                raise NotTokenwise(node, "the model also returns this value from the middle of the stack")
            if user not in members and isinstance(node.meta.get("val"), torch.Tensor) and _has_effect(user):
                raise NotTokenwise(node, f"{user.name} reads it past the last block")
    return inside


def _has_effect(user: fx.Node) -> bool:
    return isinstance(user.meta.get("val"), torch.Tensor) and bool(user.users)


def token_axis(program: Program, start: fx.Node, end: fx.Node) -> TokenAxis:
    """Follow the token axis of ``start`` (``[batch, tokens, width]``) to ``end``.

    Raises:
        NotTokenwise: an operator on the way cannot be carried over to fewer tokens; it names the node.
    """
    from . import token_rules

    shape = start.meta["val"].shape
    if len(shape) != 3:
        raise NotTokenwise(start, f"the stream has shape {list(shape)}; expected [batch, tokens, width]")
    nodes = region_between(program, start, end)
    axis = TokenAxis(dims={start: frozenset({1})})
    context = Context(axis, shape[1], set(nodes))
    for node in nodes:
        handler = token_rules.find_rule(node)
        if handler is None:
            raise NotTokenwise(node, "no rule says how this operator treats the token axis")
        axis.dims[node] = handler(context, node)
    if axis.dims.get(end) != frozenset({1}):
        raise NotTokenwise(end, "the stream does not end with tokens at dim 1")
    for attention in axis.attention:
        if not _consistent(axis, attention):
            raise NotTokenwise(attention, "the token axis does not arrive at its query at dim 2")
    return axis


def _consistent(axis: TokenAxis, attention: fx.Node) -> bool:
    return axis.dims.get(attention.args[0]) == frozenset({2})


def depends_on_inputs(program: Program, node: fx.Node) -> set[str]:
    """Names of the program inputs that ``node`` is computed from."""
    flow = nx.DiGraph((source, user) for user in program.graph.nodes for source in user.all_input_nodes)
    if node not in flow:
        return {node.name} if node.op == "placeholder" else set()
    return {n.name for n in nx.ancestors(flow, node) | {node} if n.op == "placeholder"}
