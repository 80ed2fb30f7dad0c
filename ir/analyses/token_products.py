"""How products and the dialect's roles, attention among them, treat the token axis; see ``token_rules``."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..dialect import Dim, Role, traits_of
from ..operands import arguments
from .attention_facts import positions_wanted, takes, undeclared
from .token_axis import NONE, BatchContext, Context, Dims, NotTokenwise, rule
from .token_rules import each_result, one, own_dim, rank_of, shape_of

aten = torch.ops.aten


@rule(aten.matmul, aten.bmm, aten.mm)
def matmul(context: Context, node: fx.Node) -> Dims:
    return _product(context, node, node.args[0], node.args[1])


@rule(aten.addmm, aten.baddbmm)
def added_matmul(context: Context, node: fx.Node) -> Dims:
    dims = _product(context, node, node.args[1], node.args[2])
    added: Any = node.args[0]
    rank = rank_of(node)
    shift = rank - rank_of(added)
    if not context.inside(added):
        context.side(node, added, [d - shift for d in dims if d >= shift], rank)
    elif frozenset(d + shift for d in context.dims(added)) != dims:
        raise NotTokenwise(node, f"{added.name} lines a dim that holds no tokens up with the token axis")
    return dims


def _product(context: Context, node: fx.Node, left: Any, right: Any) -> Dims:
    rank_l, rank_r, rank = rank_of(left), rank_of(right), rank_of(node)
    if rank_l < 2 or rank_r < 2:
        raise NotTokenwise(node, "multiplies a vector; no rule for the token axis there")
    dims_l, dims_r = context.dims(left), context.dims(right)
    inner_l, inner_r = rank_l - 1 in dims_l, rank_r - 2 in dims_r
    if inner_l != inner_r:
        raise NotTokenwise(node, "sums over the tokens with weights that belong to fixed positions")
    if inner_l:
        own_dim(context, node, left)
        own_dim(context, node, right)
        context.mixes(node)
    rows = {d + rank - rank_l for d in dims_l if d != rank_l - 1}
    columns = {d + rank - rank_r for d in dims_r if d != rank_r - 2}
    # The dims ahead of the matrices broadcast against each other.
    ahead = {d for d in rows | columns if d < rank - 2}
    for value, own in ((left, rows), (right, columns)):
        shift = rank - rank_of(value)
        if not context.inside(value):
            context.side(node, value, [d - shift for d in ahead if d >= shift], rank)
        elif any(d >= shift and not one(shape_of(value)[d - shift]) for d in ahead - own):
            raise NotTokenwise(node, f"{value.name} lines a dim that holds no tokens up with the token axis")
    return frozenset(rows | columns)


@rule(aten.einsum)
def einsum(context: Context, node: fx.Node) -> Dims:
    equation, values = str(node.args[0]).replace(" ", ""), list(node.args[1])  # type: ignore[arg-type]
    if "->" not in equation or "." in equation:
        raise NotTokenwise(node, f"einsum {equation!r} has no explicit result or an ellipsis")
    inputs, result = equation.split("->")
    terms = inputs.split(",")
    letters = {term[d] for term, v in zip(terms, values, strict=True) for d in context.dims(v)}
    for term, value in zip(terms, values, strict=True):
        lined_up = {i for i, letter in enumerate(term) if letter in letters}
        if context.inside(value):
            if lined_up != set(context.dims(value)):
                raise NotTokenwise(
                    node, f"{value.name} lines a dim that holds no tokens up with the token axis"
                )
        elif letters - set(result):
            if lined_up:
                raise NotTokenwise(node, "sums over the tokens with weights that belong to fixed positions")
        elif lined_up and term[0] != result[0]:
            raise NotTokenwise(
                node, f"{value.name} does not begin with the batch, so rows cannot have their own tokens"
            )
        else:
            context.side(node, value, lined_up)
    if letters - set(result):
        context.mixes(node)
    return frozenset(i for i, letter in enumerate(result) if letter in letters)


@rule(Role.ATTENDS)
def attention(context: Context, node: fx.Node) -> Any:
    """Queries at dim 2 of the query, keys at dim 2 of key and value; the traits say where other operands have them."""
    query, key, value = node.args[:3]
    expected = frozenset({0 if isinstance(context, BatchContext) else 2})
    for name, operand in (("query", query), ("key", key), ("value", value)):
        if context.inside(operand) and (
            context.dims(operand) != expected or context.fold(operand) is not None
        ):
            raise NotTokenwise(node, f"its {name} is not [batch, heads, tokens, head_dim]")
    if context.inside(key) != context.inside(value):
        raise NotTokenwise(node, "its key and value do not carry the same token axis")
    if isinstance(context, BatchContext):
        return each_result(node, expected)
    if (unknown := undeclared(node)) is not None:
        raise NotTokenwise(node, unknown)
    queries, keys = context.inside(query), context.inside(key)
    context.attends(node, queries, keys)
    _line_up(context, node, {Dim.QUERIES: queries, Dim.KEYS: keys})
    for positions in positions_wanted(node, queries, keys):
        if not takes(node, positions):
            raise NotTokenwise(
                node,
                f"hides keys by where they are, and takes no {positions.replace('_', ' ')} that would tell once tokens "
                "are missing",
            )
    result = frozenset({2}) if queries else NONE
    found = each_result(node, frozenset({2}) if keys else NONE)
    return (result, *found[1:]) if isinstance(found, tuple) else result


def _line_up(context: Context, node: fx.Node, reduced: dict[Dim, bool]) -> None:
    """Record the operands of attention beside its content that line up with tokens on a side that is ``reduced``."""
    traits, values = traits_of(node), arguments(node)
    for name, value in values.items():
        if name in traits.attends.numbers and value not in (None, []):
            raise NotTokenwise(
                node, f"its {name} holds numbers of tokens, which name others once some are dropped"
            )
        sources: list[fx.Node] = []
        fx.map_arg(value, sources.append)
        if name not in traits.content and any(map(context.inside, sources)):
            raise NotTokenwise(node, f"its {name} is computed from the stream")
    for name, layout in traits.attends.layouts().items():
        value = values[name]
        if isinstance(value, fx.Node):
            shift = rank_of(value) - len(layout)
            dims = [d + shift for d, what in enumerate(layout) if reduced.get(what) and d + shift >= 0]
            context.side(node, value, dims, len(layout))


@rule(Role.CHOOSES, Role.MOVES)
def reduced_before(context: Context, node: fx.Node) -> Any:
    raise NotTokenwise(
        node,
        "an earlier pass reduces or restores tokens here; give one pass all the layers, or let later passes act on "
        "later layers",
    )
