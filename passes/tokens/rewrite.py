"""The structural rewrite of token dropping: everything that has to happen around a method's reduction.

At a site the stream is reduced, and all that lines up with it (``passes/fewer_tokens.py``); where the stream leaves
the last block, it is brought back to full length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import operand, set_operand, takes
from tersor.ir.analyses.layers import Layer
from tersor.ir.analyses.token_axis import token_axis
from tersor.ir.builder import Builder
from tersor.ir.errors import RefusedError
from tersor.ir.inference import infer_shapes
from tersor.ir.program import Program

from ..fewer_tokens import reduce_along
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


def _restore(program: Program, stream: fx.Node, reduction: Reduction, cut: Cut) -> None:
    readers = list(cut.end.users)
    g = Builder(program, cut.end.next, str(cut.end.meta.get("layer", "")))
    restored = cut.turned(g, reduction.restore(g, stream, cut.turned(g, cut.end)))
    for reader in readers:
        reader.replace_input_with(cut.end, restored)
    # The first site's restoration is the last to run: it alone has all the tokens.
    cut.restored = cut.restored or restored
