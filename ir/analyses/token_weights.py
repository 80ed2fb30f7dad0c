"""Where a softmax over the tokens is read only as the weights of a sum over them, as attention does.

A token's share of such a softmax grows when others are dropped.  In a weighted mean over the tokens that are left
that is what is wanted; anywhere else every token that stays would change.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from ..same_elements import COPIES, MOVES
from .token_axis import BatchContext, Context, NotTokenwise, TokenAxis
from .token_rules import find_rule, rank_of

aten = torch.ops.aten

# What these make of a weight stays at its place.  Heads may be mixed too, by a linear layer over their dim.
_KEEP = (*COPIES, aten.dropout)
_SCALE = (aten.mul, aten.div, aten.masked_fill)
# The places of the two factors among the operands.
_PRODUCTS = {aten.matmul: 0, aten.bmm: 0, aten.mm: 0, aten.addmm: 1, aten.baddbmm: 1}


def check_weights_of_a_sum(context: Context, softmax: fx.Node, dim: int) -> None:
    """Raise NotTokenwise, naming ``softmax``, unless all that reads it sums it up over ``dim`` with others' values."""
    pending = [(softmax, dim)]
    while pending:
        value, dim = pending.pop()
        for reader in value.users:
            if isinstance(reader.meta.get("val"), torch.SymInt):
                continue
            for place in _places(context, value, dim, reader):
                if place is None:
                    raise NotTokenwise(
                        softmax,
                        f"is normalised over the tokens, and {reader.name} reads it other than as the weights of a sum "
                        "over them, so that dropped tokens would change it",
                    )
                pending.append((reader, place))


def _places(context: Context, value: fx.Node, dim: int, reader: fx.Node) -> Iterator[int | None]:
    """Where ``reader``'s result still holds the axis: nowhere once it is summed up, None where it is read otherwise."""
    packet = getattr(reader.target, "overloadpacket", None)
    rank = rank_of(value)
    if packet in _PRODUCTS:
        left, right = reader.args[_PRODUCTS[packet] : _PRODUCTS[packet] + 2]
        added = _PRODUCTS[packet] == 1 and reader.args[0] is value
        if added or (left is value and dim != rank - 1) or (right is value and dim != rank - 2):
            yield None
        return
    if packet is aten.einsum:
        yield from () if _is_summed(value, dim, reader) else (None,)
        return
    first = bool(reader.args) and reader.args[0] is value
    if first and (packet in _KEEP or (packet is aten.linear and dim != rank - 1)):
        yield dim
    elif packet in _SCALE and (first or packet is aten.mul) and not _from_tokens(context, value, reader):
        yield dim + rank_of(reader) - rank
    elif packet in MOVES:
        yield _moved(value, dim, reader)
    else:
        yield None


def _from_tokens(context: Context, value: fx.Node, reader: fx.Node) -> bool:
    """Whether another operand is computed from the stream, or ``value`` is used twice."""
    operands: list[fx.Node] = []
    fx.map_arg((reader.args, reader.kwargs), operands.append)
    operands.remove(value)
    return any(context.inside(operand) for operand in operands)


def _is_summed(value: fx.Node, dim: int, reader: fx.Node) -> bool:
    terms, _, result = str(reader.args[0]).replace(" ", "").partition("->")
    operands: list[object] = list(reader.args[1])  # type: ignore[arg-type]
    letters = [
        term[dim] for term, operand in zip(terms.split(","), operands, strict=True) if operand is value
    ]
    return len(operands) > 1 and not set(letters) & set(result)


def _moved(value: fx.Node, dim: int, reader: fx.Node) -> int | None:
    """The one dim of ``reader``'s result that holds the axis, and nothing else."""
    context = BatchContext(TokenAxis(), value, dim)
    rule = find_rule(reader)
    try:
        found = rule(context, reader) if rule is not None else frozenset()
    except NotTokenwise:
        return None
    context.found[reader] = found
    return next(iter(found)) if len(found) == 1 and context.fold(reader) is None else None
