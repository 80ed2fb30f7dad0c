"""The structural rewrite of token dropping: everything that has to happen around a method's reduction.

At a site the stream is reduced; values from outside that line up with the token axis (padding, rotary tables,
position biases) are reduced with it; literal token counts are rewritten; attention that asks for distances gets the
tokens' true positions; and where the stream leaves the last block, it is brought back to full length.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import operand, positions_wanted, set_operand, takes
from tersor.ir.analyses.layers import Layer
from tersor.ir.analyses.token_axis import AttentionUse, SideUse, SizeUse, TokenAxis, token_axis
from tersor.ir.builder import Builder
from tersor.ir.errors import RefusedError
from tersor.ir.inference import infer_shapes
from tersor.ir.program import Program
from tersor.ir.shapes import expression

from .method import Reduction, TokenMethod, TokenSite

aten = torch.ops.aten


@dataclass
class Cut:
    """State carried from one site to the next along the stack.

    Attributes:
        end: the stream as it leaves the last block.  restored: the same with all its tokens again.
        index: for every token that is left, its position before the first site.
        key_bias: what to add to the logits of an attention node's keys, by node.
        token_dim: the dim of the stream that holds tokens, 0 or 1; the other is the batch.
    """

    end: fx.Node
    restored: fx.Node | None = None
    index: fx.Node | None = None
    carried: dict[str, fx.Node] = field(default_factory=dict)
    key_bias: dict[fx.Node, fx.Node] = field(default_factory=dict)
    indices: list[fx.Node] = field(default_factory=list)
    token_dim: int = 1

    def turned(self, g: Builder, stream: fx.Node) -> fx.Node:
        """``stream`` with the batch first, where it is not; and back."""
        return stream if self.token_dim == 1 else g.call(aten.transpose.int, stream, 0, 1)


def reduce_at(program: Program, layer: Layer, cut: Cut, method: TokenMethod, site: TokenSite) -> None:
    """Reduce the stream after ``layer``'s attention; changes ``program``, which must be a copy, in place."""
    stream = layer.after_attention
    axis = token_axis(program, stream, cut.end, cut.token_dim)
    readers = [user for user in stream.users if user in axis.dims]
    anchor = min(readers)
    g = Builder(program, anchor, str(stream.meta.get("layer", "")))
    scored = site.attention
    site.hidden = cut.turned(g, stream)
    reduction = method.reduce(g, site)
    if scored in cut.key_bias and site.attention is not scored:
        cut.key_bias[site.attention] = cut.key_bias.pop(scored)
    reduced = cut.turned(g, reduction.hidden)
    for reader in readers:
        reader.replace_input_with(stream, reduced)
    reduce_along(g, axis, stream, reduction.index, cut.token_dim)
    if reduction.key_bias is not None:
        cut.key_bias |= {use.node: reduction.key_bias for use in axis.attention if use.keys}
    cut.index = reduction.index if cut.index is None else g.op("gather_tokens", cut.index, reduction.index, 1)
    infer_shapes(program, anchor, cut.end)
    _restore(program, site.hidden, reduction, cut)
    cut.carried = reduction.carried
    cut.indices.append(reduction.index)


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


def bias_keys(program: Program, cut: Cut) -> None:
    """Add to every attention's logits what the last site before it asked for.

    Raises:
        RefusedError: an attention takes no mask to add it to.
    """
    for node, bias in cut.key_bias.items():
        if not takes(node, "mask"):
            raise RefusedError(f"{node.name} takes no mask, to which the bias of its keys could be added")
        g = Builder(program, node, str(node.meta.get("layer", "")))
        bias = g.call(aten.unsqueeze.default, g.call(aten.unsqueeze.default, bias, 1), 1)
        dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
        if bias.meta["val"].dtype != dtype:
            bias = g.call(aten.to.dtype, bias, dtype)
        mask = operand(node, "mask")
        if mask is not None and mask.meta["val"].dtype == torch.bool:
            bias = g.call(
                aten.masked_fill.Scalar, bias, g.call(aten.logical_not.default, mask), float("-inf")
            )
        elif mask is not None:
            bias = g.add(mask, bias)
        set_operand(node, "mask", bias)


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


def _restore(program: Program, stream: fx.Node, reduction: Reduction, cut: Cut) -> None:
    readers = list(cut.end.users)
    g = Builder(program, cut.end.next, str(cut.end.meta.get("layer", "")))
    restored = cut.turned(g, reduction.restore(g, stream, cut.turned(g, cut.end)))
    for reader in readers:
        reader.replace_input_with(cut.end, restored)
    # The first site's restoration is the last to run: it alone has all the tokens.
    cut.restored = cut.restored or restored
