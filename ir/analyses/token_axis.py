"""Which dim of every value indexes tokens, and what would break if there were fewer of them.

Starting from one value of the residual stream, the axis is followed forward operator by operator (rules in
``token_rules``), up to where the stream leaves the last block or down to the outputs.  The result is the legality
proof of token dropping and its work list: values from outside that line up with the token axis and must be reduced
with it, and size arguments that stand for the token count.

The batch axis is followed by the same rules: a row of outside values may be reduced by its own row's choice only
where dim 0 is proven to be the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..errors import RefusedError
from ..evaluate import sources_of
from ..program import Program
from ..same_elements import SHAPE_ONLY
from ..shapes import expression
from .folds import WHOLE, Fold

aten = torch.ops.aten

Dims = frozenset[int]
NONE: Dims = frozenset()


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
    """A size argument of ``user`` that stands for the token count, at ``args[argument][position]``.

    ``position`` is -1 where ``args[argument]`` itself is a bound of a slice over all tokens.  ``fold`` says what
    else the size holds, where tokens share a dim.
    """

    user: fx.Node
    argument: int
    position: int
    fold: Fold | None = None


@dataclass(frozen=True)
class AttentionUse:
    """An attention node of the region, and on which sides it meets the stream's tokens."""

    node: fx.Node
    queries: bool
    keys: bool


@dataclass
class TokenAxis:
    """The token axis of a region.

    Attributes:
        dims: token dims of every value in the region (a tuple of them for a node with several results).
        sides: outside values to reduce.  sizes: size arguments to rewrite.
        counts: ``sym_size`` nodes that read the token count off a value of the region.
        mixing: nodes whose results combine different tokens other than by attention.
        attention: attention nodes of the region.
    """

    dims: dict[fx.Node, Any] = field(default_factory=dict)
    sides: list[SideUse] = field(default_factory=list)
    sizes: list[SizeUse] = field(default_factory=list)
    counts: list[fx.Node] = field(default_factory=list)
    mixing: list[fx.Node] = field(default_factory=list)
    attention: list[AttentionUse] = field(default_factory=list)


class NotTokenwise(RefusedError):
    """An operator cannot be carried over to fewer tokens."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        self.node, self.reason = node, reason
        where = node.meta.get("layer") or "the model's top level"
        super().__init__(f"{node.name} ({node.target}, in {where}): {reason}")


class Context:
    """What a rule sees of the axis that is being followed: its dims so far, and where to record findings.

    Attributes:
        protected: tokens at each end of the axis that are sure to stay, so that they may be read by position.
        rows: the batch axis, as far as the same node.
    """

    def __init__(
        self,
        axis: TokenAxis,
        start: fx.Node,
        dim: int,
        protected: tuple[int, int] = (0, 0),
        rows: Context | None = None,
    ) -> None:
        self.axis = axis
        self.rows = rows
        self.found: dict[fx.Node, Any] = {start: frozenset({dim})}
        self.folds: dict[fx.Node, Fold] = {}
        self.protected = protected
        self.token_size: Any = start.meta["val"].shape[dim]

    def dims(self, value: Any) -> Dims:
        """Dims of an operand that the axis runs along; empty for values from outside the region."""
        found = self.found.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, frozenset) else NONE

    def fold(self, value: Any) -> Fold | None:
        """What else the axis's dim of ``value`` holds, when it was folded together with others."""
        fold = self.folds.get(value)
        return None if fold == WHOLE else fold

    def leads(self, value: fx.Node) -> bool:
        """Whether dim 0 of a value (or of the first of several) holds this axis and nothing else."""
        found = self.found.get(value)
        first = found[0] if isinstance(found, tuple) else found
        return first == frozenset({0}) and self.fold(value) is None

    def inside(self, value: Any) -> bool:
        return isinstance(value, fx.Node) and value in self.found

    def is_token_size(self, size: Any) -> bool:
        return bool(expression(size) == expression(self.token_size))

    def side(self, user: fx.Node, value: Any, dims: Iterable[int], rank: int | None = None) -> None:
        """Record that ``user`` lines the outside ``value`` up with the token axis at ``dims``."""
        if not isinstance(value, fx.Node) or self.inside(value):
            return
        shape = value.meta["val"].shape
        wanted = tuple(sorted(d for d in dims if expression(shape[d]) != 1))
        for dim in wanted:
            if not self.is_token_size(shape[dim]):
                raise NotTokenwise(
                    user,
                    f"{value.name} has {shape[dim]} entries where the stream has {self.token_size} tokens",
                )
        if not wanted:
            return
        if self.rows is None or not self.rows.leads(user):
            raise NotTokenwise(
                user,
                f"lines {value.name} up with the tokens where dim 0 is not proven to be the batch, so that a row "
                "could not be given its own tokens",
            )
        use = SideUse(user, value, wanted, len(shape) if rank is None else rank)
        if any(u.user is user and u.value is value and u != use for u in self.axis.sides):
            raise NotTokenwise(user, f"lines {value.name} up with the tokens in two ways at once")
        self.axis.sides.append(use)

    def size(self, user: fx.Node, argument: int, position: int) -> None:
        self.axis.sizes.append(SizeUse(user, argument, position, self.fold(user)))

    def mixes(self, node: fx.Node) -> None:
        self.axis.mixing.append(node)

    def attends(self, node: fx.Node, queries: bool, keys: bool) -> None:
        self.axis.attention.append(AttentionUse(node, queries, keys))


class BatchContext(Context):
    """Follows the batch axis: it is only located, so nothing is recorded."""

    def side(self, user: fx.Node, value: Any, dims: Iterable[int], rank: int | None = None) -> None:
        return

    def size(self, user: fx.Node, argument: int, position: int) -> None:
        return

    def mixes(self, node: fx.Node) -> None:
        raise NotTokenwise(node, "sums over the batch")

    def attends(self, node: fx.Node, queries: bool, keys: bool) -> None:
        return


Rule = Callable[[Context, fx.Node], Any]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operator packets, overloads, or roles of the dialect's operators."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def region_between(program: Program, start: fx.Node, end: fx.Node | None) -> list[fx.Node]:
    """Nodes that depend on ``start`` and that ``end`` (or, without it, any output) depends on, in graph order.

    Raises:
        NotTokenwise: a value of the region is read beyond ``end`` other than through ``end``.
    """
    live = sources_of([program.output_node])
    region = region_nodes(program, start, program.output_node if end is None else end)
    if end is None:
        return region
    members = {start, *region}
    for node in region:
        for user in () if node is end else node.users:
            if user in members or user not in live or _is_count(user) or _is_count(node):
                continue
            if user.op == "output":
                raise NotTokenwise(node, "the model also returns this value from the middle of the stack")
            raise NotTokenwise(node, f"{user.name} reads it past the last block")
    return region


def region_nodes(program: Program, start: fx.Node, end: fx.Node) -> list[fx.Node]:
    """Calls that depend on ``start`` and that ``end`` depends on, in graph order, whoever else reads them."""
    wanted = sources_of([end])
    below: set[fx.Node] = {start}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(n in below for n in node.all_input_nodes):
            below.add(node)
    return [node for node in program.graph.nodes if node in below and node in wanted and node is not start]


def _is_count(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int


def token_axis(program: Program, start: fx.Node, end: fx.Node, dim: int = 1) -> TokenAxis:
    """Follow the token axis of ``start`` to ``end``.

    Args:
        dim: the dim of ``start`` that holds the tokens: 1 of ``[batch, tokens, width]``, 0 of
            ``[tokens, batch, width]``.

    Raises:
        NotTokenwise: an operator on the way cannot be carried over to fewer tokens; it names the node.
    """
    tokens, rows = follow(program, start, end, (0, 0), dim)
    if not _is_stream(end, tokens, rows, dim):
        raise NotTokenwise(
            end, f"the stream does not end with the batch at dim {1 - dim} and tokens at dim {dim}"
        )
    return tokens.axis


def token_axis_to_outputs(
    program: Program, start: fx.Node, prefix: int, last: int, dim: int = 1
) -> TokenAxis:
    """Follow the token axis of ``start`` to the outputs, some of which may hold one entry for each token.

    Args:
        prefix, last: tokens at each end that stay, so that reading them by position stays right.
        dim: as in ``token_axis``.

    Raises:
        NotTokenwise: an operator on the way cannot be carried over to fewer tokens; it names the node.
    """
    tokens, rows = follow(program, start, None, (prefix, last), dim)
    results: Any = program.output_node.args[0]
    for node in results:
        if tokens.dims(node) and not _is_stream(node, tokens, rows, 1):
            raise NotTokenwise(node, "this output holds tokens, but not at dim 1 of [batch, tokens, ...]")
    return tokens.axis


def _is_stream(node: fx.Node, tokens: Context, rows: Context, dim: int) -> bool:
    found = tokens.dims(node), rows.dims(node)
    unfolded = tokens.fold(node) is None and rows.fold(node) is None
    return found == (frozenset({dim}), frozenset({1 - dim})) and unfolded


def follow(
    program: Program, start: fx.Node, end: fx.Node | None, protected: tuple[int, int], dim: int = 1
) -> tuple[Context, Context]:
    """The token axis and the batch axis of ``start``, up to ``end`` or (None) to the outputs.

    Raises:
        NotTokenwise: an operator on the way cannot be carried over to fewer tokens; it names the node.
    """
    shape = start.meta["val"].shape
    if len(shape) != 3:
        raise NotTokenwise(start, f"the stream has shape {list(shape)}; expected [batch, tokens, width]")
    rows = BatchContext(TokenAxis(), start, 1 - dim)
    tokens = Context(TokenAxis(), start, dim, protected, rows)
    tokens.axis.dims = tokens.found
    for node in region_between(program, start, end):
        if _holds_tensors(node) and _shaped_by_the_batch(tokens, node):
            continue
        try:
            rows.found[node] = apply_rule(rows, node)
        except NotTokenwise:
            rows.found[node] = NONE
        tokens.found[node] = apply_rule(tokens, node)
    tokens.axis.counts = _counts(tokens)
    return tokens, rows


def _holds_tensors(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor | tuple | list)


def _shaped_by_the_batch(tokens: Context, node: fx.Node) -> bool:
    """Whether a node takes nothing from the region but sizes that fewer tokens leave as they are."""
    count = expression(tokens.token_size).free_symbols
    inputs = [n for n in node.all_input_nodes if n in tokens.found]
    sizes = [n.meta["val"] for n in inputs if isinstance(n.meta.get("val"), torch.SymInt)]
    return len(sizes) == len(inputs) and not any(expression(size).free_symbols & count for size in sizes)


def apply_rule(context: Context, node: fx.Node) -> Any:
    """The rule's answer.  A dim that holds the axis and more keeps doing so until a reshape takes it apart.

    Raises:
        NotTokenwise: the operator has no rule, or its rule refuses.
    """
    from .token_rules import find_rule

    if not _holds_tensors(node):
        return NONE  # Arithmetic on sizes: it follows the sizes of its operands.
    handler = find_rule(node)
    if handler is None:
        raise NotTokenwise(node, "no rule says how this operator treats the token axis")
    found = handler(context, node)
    if node not in context.folds:
        operands = [n for n in node.all_input_nodes if context.found.get(n)]
        folds = {context.fold(n) for n in operands}
        if len(folds) > 1:
            raise NotTokenwise(node, "joins values in which the token dim is folded in different ways")
        if folds and (fold := folds.pop()) is not None and found:
            context.folds[node] = fold
    return found


def _counts(tokens: Context) -> list[fx.Node]:
    """``sym_size`` nodes, in the region or past it, that read the size of a token dim."""
    return [
        user
        for node, dims in tokens.found.items()
        if isinstance(dims, frozenset)
        for user in node.users
        if _is_count(user) and int(user.args[1]) % len(node.meta["val"].shape) in dims  # type: ignore[arg-type]
    ]


def depends_on_inputs(node: fx.Node) -> set[str]:
    """Names of the program inputs whose values, not only whose sizes, ``node`` is computed from."""
    found, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if _is_count(current):
            continue
        shape_only = getattr(current.target, "overloadpacket", None) in SHAPE_ONLY
        for source in current.all_input_nodes:
            if source not in found and not (shape_only and source is current.args[0]):
                found.add(source)
                pending.append(source)
    return {n.name for n in found if n.op == "placeholder"}
