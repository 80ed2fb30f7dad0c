"""``F.scaled_dot_product_attention``, as timm and most modern modules call it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..builder import Builder
from ..operands import arguments
from ..shapes import same_size
from ._pattern import Pattern, WhyNot, calls, heads_differ, sizes

aten = torch.ops.aten


@dataclass(frozen=True)
class Operands:
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float
    causal: bool
    rank: int


class ScaledDotProduct(Pattern[Operands]):
    """``scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale=..., enable_gqa=...)``.

    Operands of three dims ``[batch, tokens, head_dim]`` are attention of one head; more than four have several
    dims of batch.
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
        if len(ranks) > 1 or min(ranks) < 3:
            return WhyNot(node, f"its operands have {sorted(ranks)} dims, expected 3 or more of each")
        (rank,) = ranks
        reason = heads_differ(query, key, value) if rank > 3 else None
        if reason is not None:
            return WhyNot(node, reason)
        if rank > 4 and mask is not None:
            return WhyNot(mask, f"its operands have {rank} dims, and there is a mask")
        if rank > 4 and not _alike(query, key, value):
            return WhyNot(node, f"its operands have {rank} dims, those of batch unlike")
        if rank <= 4 and _batch(query, key, value) is None:
            return WhyNot(node, "queries, keys and values have different batches")
        if mask is not None and len(sizes(mask)) > 4:
            return WhyNot(mask, f"the mask has {len(sizes(mask))} dims")
        if mask is None and values["is_causal"] and _lengths_differ(query, key):
            # Aligned to the top left in both, but only PyTorch's says so; equal lengths are what models mean.
            return WhyNot(node, "it is causal over queries and keys of different counts")
        width = sizes(query)[-1]
        if not isinstance(width, int) and values["scale"] is None:
            return WhyNot(query, "its head_dim is not fixed")
        scale = float(values["scale"]) if values["scale"] is not None else float(int(width) ** -0.5)
        return Operands(query, key, value, mask, scale, bool(values["is_causal"]), rank)

    def apply(self, node: fx.Node, match: Operands) -> WhyNot | None:
        g = self.builder(node)
        query, key, value, mask = match.query, match.key, match.value, match.mask
        shape = [g.size(query, dim) for dim in range(match.rank - 1)] if match.rank > 4 else []
        if shape:
            query, key, value = (
                g.call(
                    aten.reshape.default,
                    n,
                    [-1, *(g.size(n, dim) for dim in range(match.rank - 3, match.rank))],
                )
                for n in (query, key, value)
            )
        else:
            batch = _batch(query, key, value)
            query, key, value = (
                n if n is batch or _alike_batch(n, batch) else _repeated(g, n, batch)
                for n in (query, key, value)
            )
        if match.rank == 3:
            query, key, value = (g.call(aten.unsqueeze.default, n, 1) for n in (query, key, value))
            if mask is not None and len(sizes(mask)) == 3:
                mask = g.call(aten.unsqueeze.default, mask, 1)
        attention = g.op("attention", query, key, value, mask, scale=match.scale, causal=match.causal)
        result = attention
        if match.rank == 3:
            result = g.call(aten.squeeze.dim, attention, 1)
        elif shape:
            result = g.call(aten.reshape.default, attention, [*shape, g.size(value, 3)])
        node.replace_all_uses_with(result)
        g.program.graph.erase_node(node)
        return None


def _lengths_differ(query: fx.Node, key: fx.Node) -> bool:
    return not same_size(sizes(query)[-2], sizes(key)[-2])


def _alike(*operands: fx.Node) -> bool:
    """Whether all dims but those of heads, tokens and channels are of equal sizes."""
    batches = [sizes(operand)[:-3] for operand in operands]
    return all(same_size(a, b) for other in batches[1:] for a, b in zip(batches[0], other, strict=True))


def _batch(*operands: fx.Node) -> fx.Node | None:
    """The operand whose batch all have, or one instead of it; None where they have several."""
    whole = next((n for n in operands if not same_size(sizes(n)[0], 1)), operands[0])
    return whole if all(_alike_batch(n, whole) or same_size(sizes(n)[0], 1) for n in operands) else None


def _alike_batch(node: fx.Node, other: fx.Node | None) -> bool:
    return other is not None and same_size(sizes(node)[0], sizes(other)[0])


def _repeated(g: Builder, node: fx.Node, batch: fx.Node | None) -> fx.Node:
    assert batch is not None
    return g.call(aten.expand.default, node, [g.size(batch, 0), *[-1] * (len(sizes(node)) - 1)])
