"""Let a region of the graph, in which the token axis was followed, meet some of the tokens only.

Values from outside that line up with the token axis (padding, rotary tables, position biases) are reduced with it,
literal token counts are rewritten, and attention that asks for distances gets the tokens' true positions.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import operand, positions_wanted, set_operand
from tersor.ir.analyses.token_axis import AttentionUse, SideUse, SizeUse, TokenAxis
from tersor.ir.builder import Builder
from tersor.ir.shapes import expression

aten = torch.ops.aten


def reduce_along(g: Builder, axis: TokenAxis, full: fx.Node, index: fx.Node, dim: int = 1) -> None:
    """Let everything in the region of ``axis`` meet the tokens of ``index`` only.

    Args:
        full: a value that has all of them, at ``dim``.
    """
    _keep_counts(g, axis, full, dim)
    _reduce_sides(g, axis, index)
    count = g.size(index, 1)
    for use in axis.sizes:
        _rewrite_size(g, use, count)
    for attention in axis.attention:
        _carry_positions(attention, index)


def _keep_counts(g: Builder, axis: TokenAxis, full: fx.Node, dim: int) -> None:
    """Readers past the region that ask it for the token count go on reading the full one."""
    for count in axis.counts:
        users = [user for user in count.users if user not in axis.dims]
        if not users:
            continue
        with g.at(count):
            size = g.call(aten.sym_size.int, full, dim)
        for user in users:
            user.replace_input_with(count, size)


def _reduce_sides(g: Builder, axis: TokenAxis, index: fx.Node) -> None:
    done: dict[tuple[fx.Node, tuple[int, ...], int], fx.Node] = {}
    for use in axis.sides:
        key = (use.value, use.dims, use.rank)
        if key not in done:
            with g.at(use.user):
                done[key] = _reduced_side(g, use, index)
        use.user.replace_input_with(use.value, done[key])


def _reduced_side(g: Builder, use: SideUse, index: fx.Node) -> fx.Node:
    value = use.value
    missing = use.rank - value.meta["val"].dim()
    for _ in range(missing):
        value = g.call(aten.unsqueeze.default, value, 0)
    for dim in reversed(use.dims):
        value = g.op("gather_tokens", value, index, dim + missing)
    return value


def _rewrite_size(g: Builder, use: SizeUse, count: int | fx.Node) -> None:
    arguments = list(use.user.args)
    if use.position < 0:
        # A slice over the whole axis: its bounds become "from the start" and "to the end".
        arguments[use.argument] = 0 if use.argument == 2 else 2**63 - 1
        use.user.args = tuple(arguments)
        return
    sizes = list(arguments[use.argument])  # type: ignore[arg-type]
    if use.user.target is aten.expand.default:
        sizes[use.position] = -1
    else:
        inferred = next((i for i, size in enumerate(sizes) if _is_inferred(size)), None)
        shape = use.user.meta["val"].shape
        if inferred not in (None, use.position) and expression(shape[inferred]).is_Integer:
            sizes[inferred] = int(shape[inferred])
            inferred = None
        if inferred is None and use.fold is not None:
            sizes[use.position] = -1
        elif inferred != use.position:
            sizes[use.position] = _folded(g, use, count)
    arguments[use.argument] = sizes
    use.user.args = tuple(arguments)


def _is_inferred(size: object) -> bool:
    return isinstance(size, int) and size == -1


def _folded(g: Builder, use: SizeUse, count: int | fx.Node) -> int | fx.Node:
    """The size of the dim that the tokens are in, of which the batch is no part: that is the dim to infer."""
    if use.fold is None:
        return count
    factor = int(use.fold.outer * use.fold.inner)
    if isinstance(count, int):
        return count * factor
    with g.at(use.user):
        return g.call(operator.mul, count, factor)


def _carry_positions(use: AttentionUse, index: fx.Node) -> None:
    """Distances and order are those of the positions, which an index no longer tells once tokens are missing.

    Positions that are there already were reduced as any operand that lines up with the tokens.
    """
    for positions in positions_wanted(use.node, use.queries, use.keys):
        if operand(use.node, positions) is None:
            set_operand(use.node, positions, index)
