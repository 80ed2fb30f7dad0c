"""The structural rewrite of token dropping: everything that has to happen around a method's reduction.

At a site the stream is reduced; values from outside that line up with the token axis (padding, rotary tables,
position biases) are reduced with it; literal token counts are rewritten; windowed attention gets the tokens' true
positions; and where the stream leaves the last block, it is brought back to full length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from tersor.ir.analyses.layers import Layer, is_attention
from tersor.ir.analyses.token_axis import SideUse, SizeUse, TokenAxis, token_axis
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import expression, infer_shapes

from .method import Reduction, TokenMethod, TokenSite

aten = torch.ops.aten


@dataclass
class Cut:
    """State carried from one site to the next along the stack."""

    end: fx.Node
    carried: dict[str, fx.Node] = field(default_factory=dict)
    key_bias: fx.Node | None = None
    positions: fx.Node | None = None
    indices: list[fx.Node] = field(default_factory=list)


def reduce_at(
    program: Program, layer: Layer, depth: int, cut: Cut, method: TokenMethod, site: TokenSite
) -> None:
    """Reduce the stream after ``layer``'s attention; changes ``program``, which must be a copy, in place."""
    stream = layer.after_attention
    axis = token_axis(program, stream, cut.end)
    readers = [user for user in stream.users if user in axis.dims]
    anchor = min(readers, key=list(program.graph.nodes).index)
    g = Builder(program, anchor, str(stream.meta.get("layer", "")))
    reduction = method.reduce(g, site)
    for reader in readers:
        reader.replace_input_with(stream, reduction.hidden)
    _reduce_sides(g, axis, reduction, cut)
    _rewrite_sizes(g, axis, reduction.index)
    _carry_positions(g, axis, reduction, cut)
    _bias_keys(g, axis, reduction, cut)
    infer_shapes(program, start=anchor)
    _restore(program, stream, reduction, cut)
    cut.carried = reduction.carried
    cut.indices.append(reduction.index)


def _reduce_sides(g: Builder, axis: TokenAxis, reduction: Reduction, cut: Cut) -> None:
    done: dict[tuple[fx.Node, tuple[int, ...], int], fx.Node] = {}
    for use in axis.sides:
        if use.value is cut.positions:
            continue
        key = (use.value, use.dims, use.rank)
        if key not in done:
            with g.at(use.user):
                done[key] = _reduced_side(g, use, reduction.index)
        use.user.replace_input_with(use.value, done[key])


def _reduced_side(g: Builder, use: SideUse, index: fx.Node) -> fx.Node:
    value = use.value
    missing = use.rank - value.meta["val"].dim()
    for _ in range(missing):
        value = g.call(aten.unsqueeze.default, value, 0)
    for dim in reversed(use.dims):
        value = g.op("gather_tokens", value, index, dim + missing)
    return value


def _rewrite_sizes(g: Builder, axis: TokenAxis, index: fx.Node) -> None:
    count = g.size(index, 1)
    for use in axis.sizes:
        _rewrite_size(g, use, count)


def _rewrite_size(g: Builder, use: SizeUse, count: int | fx.Node) -> None:
    arguments = list(use.user.args)
    if use.position < 0:
        # A slice over the whole axis: its bounds become "from the start" and "to the end".
        arguments[use.argument] = 0 if use.argument == 2 else 2**63 - 1
    else:
        sizes = list(arguments[use.argument])  # type: ignore[arg-type]
        shape = use.user.meta["val"].shape
        for position, size in enumerate(sizes):
            if (
                size == -1
                and use.user.target is aten.reshape.default
                and expression(shape[position]).is_Integer
            ):
                sizes[position] = int(shape[position])
        sizes[use.position] = -1 if use.user.target is aten.expand.default else count
        arguments[use.argument] = sizes
    use.user.args = tuple(arguments)


def _carry_positions(g: Builder, axis: TokenAxis, reduction: Reduction, cut: Cut) -> None:
    """A window is a distance between positions, which an index no longer tells once tokens are missing."""
    if cut.positions is None:
        windowed = [node for node in axis.attention if node.kwargs.get("window", 0)]
        cut.positions = reduction.index
        for node in windowed:
            _set_operand(node, "query_positions", reduction.index)
            _set_operand(node, "key_positions", reduction.index)
        return
    reduced = g.op("gather_tokens", cut.positions, reduction.index, 1)
    for node in axis.attention:
        node.replace_input_with(cut.positions, reduced)
    cut.positions = reduced


def _bias_keys(g: Builder, axis: TokenAxis, reduction: Reduction, cut: Cut) -> None:
    if reduction.key_bias is None:
        return
    bias = g.call(aten.unsqueeze.default, g.call(aten.unsqueeze.default, reduction.key_bias, 1), 1)
    previous = cut.key_bias
    for node in axis.attention:
        mask = _operand(node, "mask")
        if mask is None:
            _set_operand(node, "mask", bias)
            continue
        if previous is not None and _derived(mask, previous):
            _set_operand(node, "mask", bias)
            continue
        with g.at(node):
            if mask.meta["val"].dtype == torch.bool:
                hidden = g.call(aten.logical_not.default, mask)
                joined = g.call(aten.masked_fill.Scalar, bias, hidden, float("-inf"))
            else:
                joined = g.add(mask, bias)
        _set_operand(node, "mask", joined)
    cut.key_bias = bias


def _derived(mask: fx.Node, bias: fx.Node) -> bool:
    """Whether ``mask`` is the bias of an earlier site, reduced since by ``_reduce_sides``."""
    while mask is not bias and mask.target == torch.ops.tersor.gather_tokens.default:
        mask = mask.args[0]  # type: ignore[assignment]
    return mask is bias


def _restore(program: Program, stream: fx.Node, reduction: Reduction, cut: Cut) -> None:
    readers = list(cut.end.users)
    g = Builder(program, cut.end.next, str(cut.end.meta.get("layer", "")))
    restored = reduction.restore(g, stream, cut.end)
    for reader in readers:
        reader.replace_input_with(cut.end, restored)


def _operand(node: fx.Node, name: str) -> fx.Node | None:
    position = _place(node, name)
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)  # type: ignore[return-value]


def _set_operand(node: fx.Node, name: str, value: fx.Node) -> None:
    position = _place(node, name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _place(node: fx.Node, name: str) -> int:
    assert is_attention(node)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return names.index(name)
