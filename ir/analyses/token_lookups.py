"""How operators that take entries by their number treat the token axis; see ``token_rules``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ..shapes import expression
from .token_axis import Context, Dims, NotTokenwise, rule
from .token_rules import equal, keep_unless, positive, rank_of, shape_of

aten = torch.ops.aten


@rule(aten.embedding)
def embedding(context: Context, node: fx.Node) -> Dims:
    _check_table(context, node)
    return context.dims(node.args[1])


@rule(aten.index)
def index(context: Context, node: fx.Node) -> Dims:
    """One list of places: ``x[:, :, i]`` as a channel or head is taken, or ``table[i]`` as a token looks up its row."""
    given = [(dim, places) for dim, places in enumerate(node.args[1]) if places is not None]  # type: ignore[arg-type]
    ((dim, places), *others) = given
    if others or places.meta["val"].dtype == torch.bool:
        raise NotTokenwise(node, "takes entries by several lists of places, or by a mask")
    if context.dims(places):
        _check_table(context, node)
        return frozenset(dim + d for d in context.dims(places))
    if rank_of(places) != 1:
        raise NotTokenwise(node, "takes entries by a table of places")
    return keep_unless(context, node, {dim})


@rule(aten.gather)
def gather(context: Context, node: fx.Node) -> Dims:
    """Every result takes one entry along one dim; along the others it stands where it is taken from."""
    source, places = node.args[0], node.args[2]
    along = positive(node.args[1], rank_of(node))
    if along in context.dims(source):
        raise NotTokenwise(node, "takes tokens by their place, some of which may be dropped")
    dims = context.dims(source) | context.dims(places)
    _line_up(context, node, {source: dims - {along}, places: dims})
    return dims


@rule(aten.scatter)
def scatter(context: Context, node: fx.Node) -> Dims:
    """Every value is written to a place along one dim; along the others it stands where it is written to."""
    target, dim, places, written = node.args
    values = [value for value in (target, places, written) if isinstance(value, fx.Node)]
    dims = frozenset().union(*map(context.dims, values))
    if positive(dim, rank_of(node)) in dims:
        raise NotTokenwise(node, "writes tokens to other places, some of which may be dropped")
    _line_up(context, node, dict.fromkeys(values, dims))
    return dims


def _line_up(context: Context, node: fx.Node, operands: Mapping[Any, Dims]) -> None:
    """Operands of one rank that have the tokens where they are told to have them: none is broadcast."""
    for value, dims in operands.items():
        if any(not equal(expression(shape_of(value)[d]), expression(shape_of(node)[d])) for d in dims):
            raise NotTokenwise(node, "takes some of the tokens only")
        if not context.inside(value):
            context.side(node, value, dims, rank_of(node))
        elif context.dims(value) != dims:
            raise NotTokenwise(node, f"{value.name} lines a dim that holds no tokens up with the token axis")


def _check_table(context: Context, node: fx.Node) -> None:
    table: Any = node.args[0]
    if context.inside(table):
        raise NotTokenwise(node, "looks up in a table that is computed from the tokens")
