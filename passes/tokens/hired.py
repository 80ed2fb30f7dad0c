"""HiRED (Arif et al. 2024, "Attention-Guided Token Dropping for Efficient Inference of High-Resolution VLMs").

An image is encoded as several tiles.  The class token's attention in an early layer, which looks everywhere, says
how much of the budget each tile gets; its attention in this layer, which looks at objects, says which tokens of a
tile stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.builder import Builder
from tersor.ir.shapes import same_size

from .cls_attention import class_rows, no_class_token
from .method import Scorer, TokenSite

aten = torch.ops.aten


@dataclass(frozen=True)
class HiRED(Scorer):
    """Give every image tile a budget by early class attention, and fill it by class attention here (HiRED)."""

    name: ClassVar[str] = "hired"
    partitions: int = field(
        default=4, metadata={"help": "tiles, equal runs of the tokens between the protected ones"}
    )
    early: int = field(default=0, metadata={"help": "layer whose class attention sets the budgets"})

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.early < 0:
            raise ValueError(f"partitions={self.partitions} or early={self.early} is too small")

    def why_not(self, site: TokenSite) -> str | None:
        if site.layer < self.early:
            return f"early={self.early} is a later layer than {site.layer}, at which tokens are to be dropped"
        if "tile" not in site.carried and site.layer > self.early:
            seen = site.earlier[self.early].args[1].meta["val"].shape[2]  # type: ignore[union-attr]
            if not same_size(seen, site.tokens):
                return (
                    f"layer {self.early} saw {seen} tokens, some of which an earlier pass has dropped since"
                )
        first = no_class_token(site.before(self.early)) if site.layer > self.early else None
        return first or no_class_token(site)

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        """Highest averages (Webster): the r-th best token of a tile scores ``mass / (r + 1/2)``.

        The best k of these are k tokens shared out in proportion to the tiles' masses, none given more than it has.
        """
        if "tile" not in site.carried:
            first = site if site.layer == self.early else site.before(self.early)
            site.carried |= {
                "tile": tiles(g, site, self.partitions),
                "mass": _head_mean(g, first),
            }
        tile, mass = site.carried["tile"], site.carried["mass"]
        attention = _head_mean(g, site)
        same = g.call(
            aten.eq.Tensor, g.call(aten.unsqueeze.default, tile, 2), g.call(aten.unsqueeze.default, tile, 1)
        )
        same = g.call(aten.to.dtype, same, torch.float32)
        total = g.call(
            aten.squeeze.dim, g.call(aten.matmul.default, same, g.call(aten.unsqueeze.default, mass, 2)), 2
        )
        rank = g.call(aten.sum.dim_IntList, g.mul(same, _precedes(g, attention)), [2])
        return g.call(aten.div.Tensor, total, g.add(rank, 0.5))


def _head_mean(g: Builder, site: TokenSite) -> fx.Node:
    """The class token's attention, float32 ``[batch, tokens]``: half precision cannot sum up a tile of it."""
    return g.mean(g.call(aten.to.dtype, class_rows(g, site), torch.float32), [1])


def tiles(g: Builder, site: TokenSite, partitions: int) -> fx.Node:
    """The tile of every token, int64 ``[batch, tokens]``; numbers out of range for protected ones and padding."""
    ordinal = g.add(site.ordinals(g), -site.prefix)
    real = g.call(aten.to.dtype, g.call(aten.sum.dim_IntList, site.real(g), [1], True), torch.int64)
    content = g.at_least(g.add(real, -site.prefix - site.last), 1)
    tile = g.call(aten.div.Tensor_mode, g.mul(ordinal, partitions), content, rounding_mode="floor")
    tile = g.call(aten.clamp.default, tile, -1, partitions)
    if site.padding is None:
        return tile
    return g.call(
        aten.masked_fill.Scalar, tile, g.call(aten.logical_not.default, site.padding), partitions + 1
    )


def _precedes(g: Builder, score: fx.Node) -> fx.Node:
    """1.0 at ``[b, i, j]`` where token j ranks before token i: it scores higher, or the same and comes earlier."""
    ordinal = g.call(aten.cumsum.default, g.call(aten.ones_like.default, score), 1)
    (mine, other), (here, there) = (
        (g.call(aten.unsqueeze.default, x, 2), g.call(aten.unsqueeze.default, x, 1)) for x in (score, ordinal)
    )
    tie = g.call(
        aten.logical_and.default, g.call(aten.eq.Tensor, other, mine), g.call(aten.lt.Tensor, there, here)
    )
    first = g.call(aten.logical_or.default, g.call(aten.gt.Tensor, other, mine), tie)
    return g.call(aten.to.dtype, first, torch.float32)
