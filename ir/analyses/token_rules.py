"""How operators treat the token axis: one rule for each kind of operator.

Operators that combine two values, and the dialect's own, are in ``token_products``, lookups in ``token_lookups``.

A rule returns the token dims of the node's result, records outside operands that line up with the axis and size
arguments that stand for the token count, and raises ``NotTokenwise`` where fewer tokens would change the meaning.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from ..dialect import traits_of
from ..operands import TO_THE_END, argument, arguments
from ..same_elements import COPIES
from ..shapes import expression
from .folds import WHOLE, place_after
from .token_axis import NONE, RULES, Context, Dims, NotTokenwise, Rule, rule

aten = torch.ops.aten


def find_rule(node: fx.Node) -> Rule | None:
    """The rule of a node's operator: by overload, by packet, by its role, or by its being pointwise."""
    from . import token_lookups, token_products  # noqa: F401

    target = node.target
    if target in RULES:
        return RULES[target]
    packet = getattr(target, "overloadpacket", None)
    if packet in RULES:
        return RULES[packet]
    role = traits_of(node).role
    if role in RULES:
        return RULES[role]
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return pointwise
    return None


def shape_of(value: Any) -> Any:
    return value.meta["val"].shape


def rank_of(value: Any) -> int:
    return len(shape_of(value))


def each_result(node: fx.Node, dims: Dims) -> Any:
    """What to note of a node when each of its results, or its only one, has the axis at ``dims``."""
    value = node.meta["val"]
    return (dims,) * len(value) if isinstance(value, tuple | list) else dims


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
                if own >= 0 and own not in context.dims(value) and not one(shape_of(value)[own]):
                    raise NotTokenwise(
                        node, f"{value.name} lines a dim that holds no tokens up with the token axis"
                    )
        else:
            context.side(node, value, [d - shift for d in dims if d >= shift], rank)
    return dims


@rule(aten.one_hot)
def one_hot(context: Context, node: fx.Node) -> Dims:
    return context.dims(node.args[0])


@rule(*COPIES, aten.dropout, aten.native_dropout, aten.feature_dropout, aten.zeros_like, aten.ones_like)
def unary(context: Context, node: fx.Node) -> Dims:
    return context.dims(node.args[0])


@rule(operator.getitem)
def getitem(context: Context, node: fx.Node) -> Dims:
    found = context.found[node.args[0]]  # type: ignore[index]
    return found[node.args[1]] if isinstance(found, tuple) else found  # type: ignore[no-any-return,index]


@rule(aten.linear)
def linear(context: Context, node: fx.Node) -> Dims:
    return keep_unless(context, node, {rank_of(node.args[0]) - 1})


@rule(aten.layer_norm, aten.rms_norm)
def layer_norm(context: Context, node: fx.Node) -> Dims:
    rank = rank_of(node.args[0])
    return keep_unless(context, node, set(range(rank - len(node.args[1]), rank)))  # type: ignore[arg-type]


@rule(aten.batch_norm)
def batch_norm(context: Context, node: fx.Node) -> Dims:
    if argument(node, 5):
        raise NotTokenwise(node, "norms by the mean of all tokens")
    return keep_unless(context, node, {1})


@rule(aten.softmax, aten._softmax)
def normalised_along(context: Context, node: fx.Node) -> Dims:
    """Works along one dim and keeps it; along the token dim it weighs the tokens that are left, for a sum over them."""
    from .token_weights import check_weights_of_a_sum

    dims = context.dims(node.args[0])
    dim = positive(argument(node, 1), rank_of(node))
    if dim in dims:
        own_dim(context, node, node.args[0])
        context.mixes(node)
        check_weights_of_a_sum(context, node, dim)
    return dims


@rule(aten.cumsum, aten.cumprod, aten.log_softmax)
def accumulated(context: Context, node: fx.Node) -> Dims:
    return keep_unless(context, node, {positive(argument(node, 1), rank_of(node))})


@rule(
    aten.mean, aten.sum, aten.amax, aten.amin, aten.argmax, aten.argmin, aten.any, aten.all, aten.logsumexp,
    aten.var, aten.std, aten.var_mean, aten.std_mean, aten.linalg_vector_norm, aten.prod, aten.max.dim, aten.min.dim,
)  # fmt: skip
def reduction(context: Context, node: fx.Node) -> Any:
    source = node.args[0]
    rank = rank_of(source)
    position = 2 if node.target.overloadpacket is aten.linalg_vector_norm else 1  # type: ignore[union-attr]
    given = argument(node, position)
    given = list(range(rank)) if given is None or given == [] else given
    given = [given] if isinstance(given, int) else given
    if not all(isinstance(d, int) for d in given):
        raise NotTokenwise(node, "reduces over dims that are not known")
    removed = {positive(d, rank) for d in given}
    dims = context.dims(source)
    if removed & dims:
        raise NotTokenwise(node, "reduces over the tokens, so that dropped ones would be missing")
    value = node.meta["val"]
    result = value[0] if isinstance(value, tuple | list) else value
    if result.dim() < rank:
        dims = frozenset(d - sum(1 for r in removed if r < d) for d in dims)
    return each_result(node, dims)


@rule(aten.transpose)
def transpose(context: Context, node: fx.Node) -> Dims:
    rank = rank_of(node)
    a, b = positive(node.args[1], rank), positive(node.args[2], rank)
    swap = {a: b, b: a}
    return frozenset(swap.get(d, d) for d in context.dims(node.args[0]))


@rule(aten.t, aten.numpy_T)
def reverse(context: Context, node: fx.Node) -> Dims:
    return frozenset(rank_of(node) - 1 - d for d in context.dims(node.args[0]))


@rule(aten.permute)
def permute(context: Context, node: fx.Node) -> Dims:
    order = [positive(d, rank_of(node)) for d in node.args[1]]  # type: ignore[union-attr]
    return frozenset(order.index(d) for d in context.dims(node.args[0]))


@rule(aten.unsqueeze)
def unsqueeze(context: Context, node: fx.Node) -> Dims:
    at = positive(node.args[1], rank_of(node))
    return frozenset(d + (d >= at) for d in context.dims(node.args[0]))


@rule(aten.squeeze)
def squeeze(context: Context, node: fx.Node) -> Dims:
    source = node.args[0]
    rank = rank_of(source)
    given = argument(node, 1)
    given = [d for d in range(rank) if one(shape_of(source)[d])] if given is None else given
    removed = {positive(d, rank) for d in ([given] if isinstance(given, int) else given)}
    removed = {d for d in removed if one(shape_of(source)[d])}
    return frozenset(d - sum(1 for r in removed if r < d) for d in context.dims(source) if d not in removed)


@rule(aten.select)
def select(context: Context, node: fx.Node) -> Dims:
    source, position = node.args[0], node.args[2]
    dim = positive(node.args[1], rank_of(source))
    dims = context.dims(source)
    if dim in dims:
        prefix, last = context.protected
        if (
            not isinstance(position, int)
            or not -last <= position < prefix
            or context.fold(source) is not None
        ):
            raise NotTokenwise(node, f"reads the token at position {position}, which may be dropped")
    return frozenset(d - (d > dim) for d in dims if d != dim)


@rule(aten.slice)
def slice_(context: Context, node: fx.Node) -> Dims:
    source = node.args[0]
    dim = positive(argument(node, 1, 0), rank_of(node))
    dims = context.dims(source)
    if dim not in dims:
        return dims
    if not equal(expression(shape_of(node)[dim]), expression(shape_of(source)[dim])):
        if _within_protected(context, node):
            return dims - {dim}
        raise NotTokenwise(node, "takes a range of token positions, some of which may be dropped")
    for position, neutral in ((2, 0), (3, TO_THE_END)):
        if len(node.args) > position and node.args[position] not in (neutral, None):
            context.size(node, position, -1)
    return dims


def _within_protected(context: Context, node: fx.Node) -> bool:
    """Whether a slice takes nothing but tokens that are sure to stay."""
    start, stop, step = argument(node, 2) or 0, argument(node, 3), argument(node, 4, 1)
    prefix, last = context.protected
    if context.fold(node.args[0]) is not None or step != 1 or not isinstance(start, int):
        return False
    to_the_end = stop is None or stop == TO_THE_END
    if start < 0:
        return -last <= start and (to_the_end or (isinstance(stop, int) and stop < 0))
    return not to_the_end and isinstance(stop, int) and 0 <= stop <= prefix


@rule(aten.split, aten.chunk, aten.split_with_sizes, aten.unbind, aten.tensor_split)
def pieces(context: Context, node: fx.Node) -> tuple[Dims, ...]:
    source = node.args[0]
    unbind = node.target.overloadpacket is aten.unbind  # type: ignore[union-attr]
    dim = positive(argument(node, 1 if unbind else 2, 0), rank_of(source))
    dims = context.dims(source)
    if dim in dims:
        raise NotTokenwise(node, "splits the tokens by position")
    kept = frozenset(d - (unbind and d > dim) for d in dims)
    return tuple(kept for _ in node.meta["val"])


@rule(aten.cat, aten.stack)
def cat(context: Context, node: fx.Node) -> Dims:
    values: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    stack = node.target.overloadpacket is aten.stack  # type: ignore[union-attr]
    dim = positive(argument(node, 1, 0), rank_of(node))
    dims = frozenset().union(*(context.dims(v) for v in values))
    if dim in dims and not stack:
        raise NotTokenwise(node, "adds tokens to the stream")
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


@rule(aten.glu, aten.argsort)
def along_a_dim(context: Context, node: fx.Node) -> Dims:
    return keep_unless(context, node, {positive(arguments(node)["dim"], rank_of(node))})


@rule(aten.roll, aten.flip)
def moved_along(context: Context, node: fx.Node) -> Dims:
    given = argument(node, 2 if node.target.overloadpacket is aten.roll else 1) or []  # type: ignore[union-attr]
    # Without dims the whole tensor is rolled.
    dims = {positive(d, rank_of(node)) for d in given} or set(range(rank_of(node)))
    return keep_unless(context, node, dims)


@rule(aten.topk, aten.sort)
def ranked(context: Context, node: fx.Node) -> tuple[Dims, Dims]:
    by_overload = 2 if node.target.overloadpacket is aten.topk else 1  # type: ignore[union-attr]
    dims = keep_unless(context, node, {positive(argument(node, by_overload, -1), rank_of(node.args[0]))})
    return dims, dims


@rule(aten.repeat)
def repeat(context: Context, node: fx.Node) -> Dims:
    shift = rank_of(node) - rank_of(node.args[0])
    dims = frozenset(d + shift for d in context.dims(node.args[0]))
    if any(node.args[1][d] != 1 for d in dims):  # type: ignore[index]
        raise NotTokenwise(node, "repeats the tokens")
    return dims


@rule(aten.repeat_interleave)
def repeat_interleave(context: Context, node: fx.Node) -> Dims:
    if not isinstance(argument(node, 1), int) or argument(node, 2) is None:
        raise NotTokenwise(node, "repeats by counts that are computed, or over all dims at once")
    return keep_unless(context, node, {positive(argument(node, 2), rank_of(node))})


@rule(aten.reshape, aten.view, aten._unsafe_view, aten.flatten, aten.unflatten)
def reshape(context: Context, node: fx.Node) -> Dims:
    """A token dim must come out whole: as a dim of its own, or folded together with others."""
    source = node.args[0]
    before, after = shape_of(source), shape_of(node)
    dims = context.dims(source)
    places = [place_after(before, after, d, context.fold(source) or WHOLE) for d in sorted(dims)]
    sized = node.target.overloadpacket in (aten.reshape, aten.view, aten._unsafe_view)  # type: ignore[union-attr]
    for place in places:
        if place is None:
            raise NotTokenwise(node, f"takes the token dim of {list(before)} apart into {list(after)}")
        if place[1] != WHOLE and len(places) > 1:
            raise NotTokenwise(node, f"folds one of two token dims of {list(before)} into {list(after)}")
        context.folds[node] = place[1]
        if sized:
            context.size(node, 1, place[0])
    return frozenset(place[0] for place in places if place is not None)


def keep_unless(context: Context, node: fx.Node, reduced: set[int]) -> Dims:
    dims = context.dims(node.args[0])
    if dims & reduced:
        raise NotTokenwise(node, "works along the token axis, so that dropped tokens would be missing")
    for other in node.all_input_nodes:
        if other is not node.args[0] and context.inside(other) and is_tensor(other):
            raise NotTokenwise(node, f"takes {other.name}, computed from the stream, as a weight")
    return dims


def own_dim(context: Context, node: fx.Node, value: Any) -> None:
    if context.fold(value) is not None:
        raise NotTokenwise(
            node, f"works along a dim of {value.name} in which tokens and others are folded together"
        )


def is_tensor(value: fx.Node) -> bool:
    return isinstance(value.meta.get("val"), torch.Tensor)


def positive(dim: Any, rank: int) -> int:
    return int(dim) % rank if rank else 0


def one(size_: Any) -> bool:
    return bool(expression(size_) == 1)


def equal(left: Any, right: Any) -> bool:
    return bool((left - right).expand() == 0)
