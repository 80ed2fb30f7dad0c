"""``F.scaled_dot_product_attention``, as timm and most modern modules call it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..builder import Builder
from ..operands import arguments
from ..shapes import same_size
from ._pattern import Pattern, WhyNot, calls, sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Operands:
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float
    causal: bool
    heads_missing: bool


class ScaledDotProduct(Pattern[Operands]):
    """``scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=..., enable_gqa=...)``.

    Operands of three dims ``[batch, tokens, head_dim]`` are attention of one head.
    """

    name = "scaled dot product"

    def anchor(self, node: fx.Node) -> bool:
        return calls(node, aten.scaled_dot_product_attention.default)

    def match(self, node: fx.Node) -> Operands | WhyNot | None:
        values = arguments(node)
        query, key, value, mask = values["query"], values["key"], values["value"], values["attn_mask"]
        if values["dropout_p"]:
            return WhyNot(node, f"it drops attention with probability {values['dropout_p']}")
        ranks = {len(sizes(n)) for n in (query, key, value)}
        if ranks not in ({3}, {4}):
            return WhyNot(node, f"its operands have {sorted(ranks)} dims, expected 3 or 4")
        if mask is not None and len(sizes(mask)) > 4:
            return WhyNot(mask, f"the mask has {len(sizes(mask))} dims")
        if mask is None and values["is_causal"] and _lengths_differ(query, key):
            # Aligned to the top left in both, but only PyTorch's says so; equal lengths are what models mean.
            return WhyNot(node, "it is causal over queries and keys of different counts")
        width = sizes(query)[-1]
        if not isinstance(width, int) and values["scale"] is None:
            return WhyNot(query, "its head_dim is not fixed")
        scale = float(values["scale"]) if values["scale"] is not None else float(int(width) ** -0.5)
        return Operands(query, key, value, mask, scale, bool(values["is_causal"]), ranks == {3})

    def apply(self, node: fx.Node, match: Operands) -> None:
        g = self.builder(node)
        replace_with_attention(g, node, match)


def replace_with_attention(g: Builder, node: fx.Node, match: Operands) -> None:
    """Put ``tersor.attention`` in the place of ``node``."""
    query, key, value, mask = match.query, match.key, match.value, match.mask
    if match.heads_missing:
        query, key, value = (g.call(aten.unsqueeze.default, n, 1) for n in (query, key, value))
        if mask is not None and len(sizes(mask)) == 3:
            mask = g.call(aten.unsqueeze.default, mask, 1)
    attention = g.op("attention", query, key, value, mask, scale=match.scale, causal=match.causal)
    result = g.call(aten.squeeze.dim, attention, 1) if match.heads_missing else attention
    node.replace_all_uses_with(result)
    g.program.graph.erase_node(node)


def _lengths_differ(query: fx.Node, key: fx.Node) -> bool:
    return not same_size(sizes(query)[-2], sizes(key)[-2])
