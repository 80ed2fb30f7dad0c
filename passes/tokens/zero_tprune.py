"""Zero-TPrune (Wang et al. 2023, "Zero-Shot Token Pruning through Leveraging of the Attention Graph").

Stage I ranks tokens by weighted PageRank on the attention graph and removes the least important; stage S splits
the rest by importance and removes, from the less important half, the tokens whose keys are closest to a token of
the more important half.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import is_causal
from tersor.ir.builder import Builder

from .method import Reduction, TokenMethod, TokenSite, drop, select

aten = torch.ops.aten
# A cosine distance lies between 0 and 2.
_ABOVE_ANY_DISTANCE, _BELOW_ANY_DISTANCE = 4.0, -1.0


@dataclass(frozen=True)
class ZeroTPrune(TokenMethod):
    """Drop tokens that matter little on the attention graph, then those most like an important one."""

    name: ClassVar[str] = "zero-tprune"
    similar: float = field(default=0.5, metadata={"help": "share of the dropped tokens that stage S drops"})
    # The paper takes 30 to 50, each of which reads all attention again: fewer take less time.
    early: int = field(default=10, metadata={"help": "PageRank iterations in the first three layers"})
    middle: int = field(default=5, metadata={"help": "PageRank iterations between the first and last three"})
    late: int = field(default=1, metadata={"help": "PageRank iterations in the last three layers"})
    low: float = field(
        default=0.01, metadata={"help": "heads with a smaller variance of importance are left out"}
    )
    high: float = field(
        default=0.7, metadata={"help": "heads with a larger variance of importance are left out"}
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.similar <= 1.0:
            raise ValueError(f"similar={self.similar:g} is outside 0 to 1")
        if min(self.early, self.middle, self.late) < 1:
            raise ValueError("early, middle and late must be at least 1 iteration")

    def why_not(self, site: TokenSite) -> str | None:
        if is_causal(site.attention):
            return "attention is causal, so PageRank drains to the first token; use received-attention"
        return site.why_no_importance()

    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        dropped = 1000 - site.keep_per_mille
        survivors = 1000 - round(dropped * (1.0 - self.similar))
        importance = self.importance(g, site)
        if survivors == site.keep_per_mille:
            return drop(g, site, select(g, site, importance, survivors))
        # Whoever falls in stage I ranks below all that stage S looks at; one choice then keeps exactly as many
        # tokens as any other method does.
        index = select(g, site, importance, survivors)
        fallen = g.call(aten.full_like.default, importance, _BELOW_ANY_DISTANCE)
        score = g.op("scatter_tokens", fallen, index, dissimilarity(g, site, importance, index))
        return drop(g, site, select(g, site, score, site.keep_per_mille))

    def iterations(self, site: TokenSite) -> int:
        if site.layer < 3:
            return self.early
        return self.late if site.layer >= site.depth - 3 else self.middle

    def importance(self, g: Builder, site: TokenSite) -> fx.Node:
        """Weighted PageRank, heads joined by the root mean square of those that tell tokens apart."""
        rank = site.importance(g, lambda b: uniform(b, site), self.iterations(site))
        real = g.call(aten.unsqueeze.default, site.real(g), 1)
        count = g.call(aten.sum.dim_IntList, real, [-1], True)
        scaled = g.mul(rank, count)
        spread = g.mul(g.call(aten.pow.Tensor_Scalar, g.add(scaled, -1.0), 2), real)
        variance = g.call(aten.div.Tensor, g.call(aten.sum.dim_IntList, spread, [-1], True), count)
        fits = g.call(
            aten.logical_and.default,
            g.call(aten.ge.Scalar, variance, self.low),
            g.call(aten.le.Scalar, variance, self.high),
        )
        weight = g.call(aten.to.dtype, fits, torch.float32)
        # Where no head of a row tells tokens apart, all heads are asked.
        none = g.call(aten.eq.Scalar, g.call(aten.sum.dim_IntList, weight, [1], True), 0)
        weight = g.add(weight, g.call(aten.to.dtype, none, torch.float32))
        squares = g.mul(g.call(aten.pow.Tensor_Scalar, scaled, 2), weight)
        total = g.call(
            aten.div.Tensor,
            g.call(aten.sum.dim_IntList, squares, [1]),
            g.call(aten.sum.dim_IntList, weight, [1]),
        )
        return g.call(aten.sqrt.default, total)


def dissimilarity(g: Builder, site: TokenSite, importance: fx.Node, index: fx.Node) -> fx.Node:
    """Stage S, for the tokens of ``index``: distance of the less important half to the nearest of the other half.

    The more important half ranks above that, by importance, for the case that more tokens go than a half.
    """
    key = g.op("gather_tokens", g.call(aten.to.dtype, g.mean(site.key, [1]), torch.float32), index, 1)
    importance = g.op("gather_tokens", importance, index, 1)
    padding = g.op("gather_tokens", site.padding, index, 1) if site.padding is not None else None
    upper = upper_half(g, importance, padding)
    norm = g.call(aten.linalg_vector_norm.default, key, 2.0, [-1], True)
    unit = g.call(aten.div.Tensor, key, g.at_least(norm, 1e-12))
    cosine = g.call(aten.matmul.default, unit, g.call(aten.transpose.int, unit, 1, 2))
    others = g.call(aten.logical_not.default, g.call(aten.unsqueeze.default, upper, 1))
    nearest = g.call(aten.amax.default, g.call(aten.masked_fill.Scalar, cosine, others, -1.0), [-1])
    distance = g.call(aten.rsub.Scalar, nearest, 1.0)
    return g.call(aten.where.self, upper, g.add(importance, _ABOVE_ANY_DISTANCE), distance)


def uniform(g: Builder, site: TokenSite) -> fx.Node:
    """The start of PageRank: equal weight on every real token, ``[batch, 1, tokens]``, summing to 1."""
    real = site.real(g)
    share = g.call(aten.div.Tensor, real, g.call(aten.sum.dim_IntList, real, [-1], True))
    return g.call(aten.unsqueeze.default, share, 1)


def upper_half(g: Builder, importance: fx.Node, padding: fx.Node | None) -> fx.Node:
    """Bool ``[batch, tokens]``: the more important half of each row's real tokens."""
    if padding is None:
        real = g.call(aten.to.dtype, g.call(aten.ones_like.default, importance), torch.int64)
    else:
        real = g.call(aten.to.dtype, padding, torch.int64)
        hidden = g.call(aten.logical_not.default, padding)
        importance = g.call(aten.masked_fill.Scalar, importance, hidden, float("-inf"))
    ordered = g.item(g.call(aten.sort.default, importance, -1, True), 0)
    count = g.call(aten.sum.dim_IntList, real, [-1], True)
    # A row of nothing but padding has no place of its own; any will do, for nobody reads what stays of it.
    count = g.at_least(count, 1)
    middle = g.call(aten.floor_divide.default, g.add(count, -1), 2)
    threshold = g.call(aten.gather.default, ordered, 1, middle)
    return g.call(aten.ge.Tensor, importance, threshold)
