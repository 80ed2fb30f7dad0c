"""Sums below the last block that read a few tokens of a row, as its product with a one-hot row does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.analyses.attention_facts import operand
from tersor.ir.analyses.layers import Layers
from tersor.ir.analyses.located import Located
from tersor.ir.analyses.token_axis import NotTokenwise, TokenAxis, region_nodes
from tersor.ir.evaluate import evaluate
from tersor.ir.program import Program
from tersor.ir.shapes import same_size

aten = torch.ops.aten
_HIDES = (aten.mul, aten.where, aten.masked_fill)
_SUMS_OF_PRODUCTS = (aten.matmul, aten.bmm, aten.mm, aten.addmm, aten.baddbmm, aten.einsum)


def refuse_picks(program: Program, stack: Layers) -> None:
    """Refuse what leaves most real tokens of some row of the example out of a sum, by numbers that are no padding.

    Raises:
        NotTokenwise: it names the node and what picks.
    """
    tokens = Located(TokenAxis(), stack.end, stack.token_dim)
    picked: dict[fx.Node, fx.Node] = {}
    for node in region_nodes(program, stack.end, program.output_node):
        held = [n for n in node.all_input_nodes if len(tokens.dims(n)) == 1]
        tokens.follow(node)
        if not held or not isinstance(node.meta.get("val"), Tensor):
            continue
        packet = getattr(node.target, "overloadpacket", None)
        by = next((picked[n] for n in held if n in picked), None)
        if packet in _HIDES and tokens.dims(node):
            (dim,) = tokens.dims(node)
            rank = node.meta["val"].dim()
            others = ((n, dim - rank + n.meta["val"].dim()) for n in _outside(node, tokens))
            by = by or next((n for n, at in others if at >= 0 and _picks(program, stack, node, n, at)), None)
        elif packet in _SUMS_OF_PRODUCTS:
            size = held[0].meta["val"].shape[next(iter(tokens.dims(held[0])))]
            for other in _outside(node, tokens):
                dims = [d for d, own in enumerate(other.meta["val"].shape) if same_size(own, size)]
                if len(dims) == 1 and _picks(program, stack, node, other, dims[0]):
                    by = other
        if by is None:
            continue
        if not tokens.dims(node):
            raise NotTokenwise(
                node, f"reads only the tokens that {by.name} picks by their place, which may be dropped"
            )
        picked[node] = by


def _outside(node: fx.Node, tokens: Located) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor) and not tokens.inside(n)]


def _picks(program: Program, stack: Layers, user: fx.Node, by: fx.Node, dim: int) -> bool:
    """Whether ``by`` leaves out most real tokens, which lie along ``dim``, of a row of the example."""
    padding: Any = operand(stack.blocks[-1].attention[0], "padding")
    asked = [by] if padding is None else [by, padding]
    values = evaluate(program, asked, program.bind(**program.example_inputs))
    weights = values[by].movedim(dim, -1)
    count = weights.shape[-1]
    if count == 1:
        return False
    read = weights != 0
    if user.target.overloadpacket is aten.masked_fill:  # type: ignore[union-attr]
        read = ~read
    real = torch.ones(1, count, dtype=torch.bool) if padding is None else values[padding].bool()
    if real.shape[-1] != count:
        return False
    # Rows of the batch come first where there are any; other dims are heads, channels or several picks.
    if read.dim() > 1 and read.shape[0] == len(real):
        read, real = read.reshape(len(real), -1, count), real[:, None]
    else:
        read = read.reshape(-1, 1, count)
    return bool(((read & real).sum(-1) * 2 < real.sum(-1)).any())
