"""How operators treat the token axis: one rule for each kind of operator.

A rule returns the token dims of the node's result, records outside operands that line up with the axis and size
arguments that stand for the token count, and raises ``NotTokenwise`` where fewer tokens would change the meaning.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..shapes import expression
from .token_axis import RULES, Context, Dims, NotTokenwise, Rule, rule

aten = torch.ops.aten
tersor = torch.ops.tersor
NONE: Dims = frozenset()


def find_rule(node: fx.Node) -> Rule | None:
    """The rule of a node's operator: by overload, by packet, or by its being pointwise."""
    target = node.target
    if target in RULES:
        return RULES[target]
    packet = getattr(target, "overloadpacket", None)
    if packet in RULES:
        return RULES[packet]
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return pointwise
    return None


def shape_of(value: Any) -> Any:
    return value.meta["val"].shape


def rank_of(value: Any) -> int:
    return len(shape_of(value))


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument, by position or by its schema name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(node.target._schema.arguments[position].name, default)  # type: ignore[union-attr]


@rule(aten.masked_fill, aten.where, aten.__and__, aten.__or__, aten.lerp)
def pointwise(context: Context, node: fx.Node) -> Dims:
    """Operands broadcast against each other from the last dim."""
    rank = rank_of(node)
    operands = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
    dims: Dims = NONE
    for value in operands:
        dims |= {d + rank - rank_of(value) for d in context.dims(value)}
    for value in operands:
        shift = rank - rank_of(value)
        if context.inside(value):
            for dim in dims:
                own = dim - shift
                if own >= 0 and own not in context.dims(value) and not _one(shape_of(value)[own]):
                    raise NotTokenwise(
                        node, f"{value.name} lines a dim that holds no tokens up with the token axis"
                    )
        else:
            context.side(node, value, [d - shift for d in dims if d >= shift], rank)
    return dims


@rule(
    aten.to, aten._to_copy, aten.dropout, aten.contiguous, aten.clone, aten.detach, aten.alias, aten.native_dropout,
    aten.lift_fresh_copy, aten.type_as, aten.zeros_like, aten.ones_like, aten.feature_dropout,
)  # fmt: skip
def unary(context: Context, node: fx.Node) -> Dims:
    return context.dims(node.args[0])


@rule(operator.getitem)
def getitem(context: Context, node: fx.Node) -> Dims:
    found = context.axis.dims[node.args[0]]
    return found[node.args[1]] if isinstance(found, tuple) else found  # type: ignore[no-any-return,index]


@rule(aten.sym_size)
def size(context: Context, node: fx.Node) -> Dims:
    return NONE


@rule(aten.linear)
def linear(context: Context, node: fx.Node) -> Dims:
    return _keep_unless(context, node, {rank_of(node.args[0]) - 1})


@rule(aten.layer_norm, aten.rms_norm)
def normalised(context: Context, node: fx.Node) -> Dims:
    rank = rank_of(node.args[0])
    return _keep_unless(context, node, set(range(rank - len(node.args[1]), rank)))  # type: ignore[arg-type]


@rule(aten.softmax, aten._softmax, aten.log_softmax, aten.cumsum)
def along(context: Context, node: fx.Node) -> Dims:
    """Works along one dim and keeps it; along the token dim it mixes the tokens that are left."""
    dims = context.dims(node.args[0])
    if _positive(argument(node, 1), rank_of(node)) in dims:
        context.axis.mixing.append(node)
    return dims


@rule(aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm, aten.prod)
def reduction(context: Context, node: fx.Node) -> Dims:
    source = node.args[0]
    rank = rank_of(source)
    position = 2 if node.target.overloadpacket is aten.linalg_vector_norm else 1  # type: ignore[union-attr]
    given = argument(node, position)
    given = list(range(rank)) if given is None or given == [] else given
    given = [given] if isinstance(given, int) else given
    if not all(isinstance(d, int) for d in given):
        raise NotTokenwise(node, "reduces over dims that are not known")
    removed = {_positive(d, rank) for d in given}
    if removed & context.dims(source):
        raise NotTokenwise(
            node, "reduces over the tokens inside the stack, so that dropped ones would be missing"
        )
    if rank_of(node) == rank:
        return context.dims(source)
    return frozenset(d - sum(1 for r in removed if r < d) for d in context.dims(source))


@rule(aten.transpose)
def transpose(context: Context, node: fx.Node) -> Dims:
    rank = rank_of(node)
    a, b = _positive(node.args[1], rank), _positive(node.args[2], rank)
    swap = {a: b, b: a}
    return frozenset(swap.get(d, d) for d in context.dims(node.args[0]))


@rule(aten.t, aten.numpy_T)
def reverse(context: Context, node: fx.Node) -> Dims:
    return frozenset(rank_of(node) - 1 - d for d in context.dims(node.args[0]))


@rule(aten.permute)
def permute(context: Context, node: fx.Node) -> Dims:
    order = [_positive(d, rank_of(node)) for d in node.args[1]]  # type: ignore[union-attr]
    return frozenset(order.index(d) for d in context.dims(node.args[0]))


@rule(aten.unsqueeze)
def unsqueeze(context: Context, node: fx.Node) -> Dims:
    at = _positive(node.args[1], rank_of(node))
    return frozenset(d + (d >= at) for d in context.dims(node.args[0]))


@rule(aten.squeeze)
def squeeze(context: Context, node: fx.Node) -> Dims:
    source = node.args[0]
    rank = rank_of(source)
    given = argument(node, 1)
    given = [d for d in range(rank) if _one(shape_of(source)[d])] if given is None else given
    removed = {_positive(d, rank) for d in ([given] if isinstance(given, int) else given)}
    removed = {d for d in removed if _one(shape_of(source)[d])}
    return frozenset(d - sum(1 for r in removed if r < d) for d in context.dims(source) if d not in removed)


@rule(aten.select)
def select(context: Context, node: fx.Node) -> Dims:
    dim = _positive(node.args[1], rank_of(node.args[0]))
    if dim in context.dims(node.args[0]):
        raise NotTokenwise(node, f"reads the token at position {node.args[2]} inside the stack")
    return frozenset(d - (d > dim) for d in context.dims(node.args[0]))


@rule(aten.slice)
def slice_(context: Context, node: fx.Node) -> Dims:
    source = node.args[0]
    dim = _positive(argument(node, 1, 0), rank_of(node))
    if dim in context.dims(source) and expression(shape_of(node)[dim]) != expression(shape_of(source)[dim]):
        raise NotTokenwise(node, "takes a fixed range of token positions inside the stack")
    if dim in context.dims(source):
        for position, neutral in ((2, 0), (3, 2**63 - 1)):
            if len(node.args) > position and node.args[position] not in (neutral, None):
                context.size(node, position, -1)
    return context.dims(source)


@rule(aten.split, aten.chunk, aten.split_with_sizes, aten.unbind, aten.tensor_split)
def pieces(context: Context, node: fx.Node) -> tuple[Dims, ...]:
    source = node.args[0]
    unbind = node.target.overloadpacket is aten.unbind  # type: ignore[union-attr]
    dim = _positive(argument(node, 1 if unbind else 2, 0), rank_of(source))
    dims = context.dims(source)
    if dim in dims:
        raise NotTokenwise(node, "splits the tokens by position inside the stack")
    kept = frozenset(d - (unbind and d > dim) for d in dims)
    return tuple(kept for _ in node.meta["val"])


@rule(aten.cat, aten.stack)
def cat(context: Context, node: fx.Node) -> Dims:
    values: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    stack = node.target.overloadpacket is aten.stack  # type: ignore[union-attr]
    dim = _positive(argument(node, 1, 0), rank_of(node))
    dims = frozenset().union(*(context.dims(v) for v in values))
    if dim in dims and not stack:
        raise NotTokenwise(node, "adds tokens to the stream inside the stack")
    for value in values:
        context.side(node, value, dims)
    return frozenset(d + (stack and d >= dim) for d in dims)


@rule(aten.expand)
def expand(context: Context, node: fx.Node) -> Dims:
    source = node.args[0]
    shift = rank_of(node) - rank_of(source)
    dims = frozenset(d + shift for d in context.dims(source))
    for dim in dims:
        context.size(node, 1, dim)
    return dims


@rule(aten.reshape, aten.view, aten._unsafe_view, aten.flatten, aten.unflatten)
def reshape(context: Context, node: fx.Node) -> Dims:
    """A token dim must come out as a dim of its own."""
    source = node.args[0]
    before, after = shape_of(source), shape_of(node)
    dims = frozenset(_place_after(node, before, after, d) for d in context.dims(source))
    if node.target.overloadpacket in (aten.reshape, aten.view, aten._unsafe_view):  # type: ignore[union-attr]
        for dim in dims:
            context.size(node, 1, dim)
    return dims


def _place_after(node: fx.Node, before: Any, after: Any, dim: int) -> int:
    """The dim of ``after`` with as many elements before it as ``dim`` has, and the same size."""
    ahead = _product(before[:dim])
    for place, size_ in enumerate(after):
        if _equal(_product(after[:place]), ahead) and _equal(expression(size_), expression(before[dim])):
            return place
    raise NotTokenwise(node, f"folds the token dim of {list(before)} into another dim of {list(after)}")


@rule(aten.matmul, aten.bmm, aten.mm)
def matmul(context: Context, node: fx.Node) -> Dims:
    left, right = node.args[:2]
    rank_l, rank_r, rank = rank_of(left), rank_of(right), rank_of(node)
    dims_l, dims_r = context.dims(left), context.dims(right)
    if rank_l < 2 or rank_r < 2:
        raise NotTokenwise(node, "multiplies a vector; no rule for the token axis there")
    inner_l, inner_r = rank_l - 1 in dims_l, rank_r - 2 in dims_r
    if inner_l or inner_r:
        context.axis.mixing.append(node)
        if not inner_l:
            context.side(node, left, [rank_l - 1])
        if not inner_r:
            context.side(node, right, [rank_r - 2])
    found = {d + rank - rank_l for d in dims_l if d != rank_l - 1}
    found |= {d + rank - rank_r for d in dims_r if d != rank_r - 2}
    return frozenset(found)


@rule(aten.einsum)
def einsum(context: Context, node: fx.Node) -> Dims:
    equation, values = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    if "->" not in equation or "." in equation:
        raise NotTokenwise(node, f"einsum {equation!r} has no explicit result or an ellipsis")
    inputs, result = equation.split("->")
    terms = inputs.split(",")
    letters = {term[d] for term, v in zip(terms, values, strict=True) for d in context.dims(v)}
    for term, value in zip(terms, values, strict=True):
        context.side(node, value, [i for i, letter in enumerate(term) if letter in letters])
    if letters - set(result):
        context.axis.mixing.append(node)
    return frozenset(i for i, letter in enumerate(result) if letter in letters)


@rule(tersor.attention, tersor.attention_importance)
def attention(context: Context, node: fx.Node) -> Any:
    """Queries at dim 2 of the query, keys at dim 2 of key and value; everything else lines up with one of them."""
    importance = node.target.overloadpacket is tersor.attention_importance  # type: ignore[union-attr]
    query, key, value = node.args[:3]
    if context.dims(key) != context.dims(value):
        raise NotTokenwise(node, "its key and value do not carry the same token axis")
    queries, keys = context.inside(query) and 2 in context.dims(query), 2 in context.dims(key)
    context.axis.attention.append(node)
    offset = 4 if importance else 3
    mask, padding, query_positions, key_positions = (argument(node, offset + i) for i in range(4))
    if isinstance(mask, fx.Node):
        rank = rank_of(mask)
        context.side(
            node, mask, [d for d, used in ((rank - 2, queries), (rank - 1, keys)) if used and d >= 0]
        )
    for operand, used in ((padding, keys), (query_positions, queries), (key_positions, keys)):
        if isinstance(operand, fx.Node) and used:
            context.side(node, operand, [1])
    result = frozenset({2}) if queries else NONE
    return (result, frozenset({2}) if keys else NONE) if importance else result


def _keep_unless(context: Context, node: fx.Node, reduced: set[int]) -> Dims:
    dims = context.dims(node.args[0])
    if dims & reduced or any(context.inside(a) for a in node.all_input_nodes if a is not node.args[0]):
        raise NotTokenwise(node, "works along the token axis, or takes weights computed from the stream")
    return dims


def _positive(dim: Any, rank: int) -> int:
    return int(dim) % rank if rank else 0


def _one(size_: Any) -> bool:
    return bool(expression(size_) == 1)


def _product(sizes: Any) -> Any:
    result = expression(1)
    for size_ in sizes:
        result = result * expression(size_)
    return result


def _equal(left: Any, right: Any) -> bool:
    return bool((left - right).expand() == 0)
