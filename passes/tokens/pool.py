"""Average pooling of neighbouring tokens (as CrossLMM, Yan et al. 2025, pools visual tokens before the language model).

CrossLMM trains with windows of one size, `squares`.  A model that was not trained with pooling keeps more of itself
where windows end between tokens that differ, as in adjacent token merging (A-ToMe, Li et al. 2023): `similar`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import is_causal
from tersor.ir.builder import Builder

from .method import Reduction, TokenMethod, TokenSite
from .stand_in import log_size

aten = torch.ops.aten
_ABOVE_ANY_DISTANCE = 4.0  # a cosine distance lies between 0 and 2


@dataclass(frozen=True)
class Pool(TokenMethod):
    """Replace neighbouring tokens by their mean (CrossLMM)."""

    name: ClassVar[str] = "pool"
    merges: ClassVar[bool] = True
    groups: Literal["similar", "equal", "squares"] = field(
        default="similar",
        metadata={
            "help": "runs that end where neighbours differ most, runs of equal length, or squares of an image"
        },
    )

    def why_not(self, site: TokenSite) -> str | None:
        if is_causal(site.attention):
            return "attention is causal: a mean would carry later content to an earlier position"
        if self.groups != "squares":
            return None
        content = _content(site)
        if site.padding is not None or content is None:
            return "groups=squares needs a fixed number of tokens and no padding"
        if math.isqrt(content) ** 2 != content:
            return f"groups=squares needs a square image, and {content} tokens lie between the protected ones"
        return None

    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        size = site.carried.get("size") or site.real(g)
        if self.groups == "squares":
            kept, column = squares(g, site)
        else:
            starts = unlike_neighbours if self.groups == "similar" else equal_lengths
            kept, column = runs(g, site, starts(g, site))
        hidden, sizes = averaged(g, site.hidden, size, kept, column)
        return Reduction(
            hidden=hidden,
            index=kept,
            restore=lambda b, base, reduced: b.op("gather_tokens", reduced, column, 1),
            carried={"size": sizes},
            key_bias=log_size(g, sizes) if site.proportional else None,
        )


def equal_lengths(g: Builder, site: TokenSite) -> fx.Node:
    """1.0 where one of as many equal runs as tokens are to be kept starts, else 0.0; ``[batch, tokens]``."""
    ordinal = g.add(site.ordinals(g), -site.prefix)
    count = g.call(aten.to.dtype, g.call(aten.sum.dim_IntList, site.real(g), [1], True), torch.int64)
    content = g.at_least(g.add(count, -site.prefix - site.last), 1)
    share = _floor_div(g, g.add(g.mul(content, site.keep_per_mille), 999), 1000)
    run, before = (
        _floor_div(g, g.mul(position, share), content) for position in (ordinal, g.add(ordinal, -1))
    )
    return g.call(aten.to.dtype, g.call(aten.ne.Tensor, run, before), torch.float32)


def unlike_neighbours(g: Builder, site: TokenSite) -> fx.Node:
    """Cosine distance of each token's key (head mean) from its left neighbour's, float32 ``[batch, tokens]``.

    The first unprotected token has no neighbour to join and ranks above every distance.
    """
    key = g.call(aten.to.dtype, g.mean(site.key, [1]), torch.float32)
    norm = g.call(aten.linalg_vector_norm.default, key, 2.0, [-1], True)
    unit = g.call(aten.div.Tensor, key, g.at_least(norm, 1e-12))
    left = g.call(aten.constant_pad_nd.default, g.call(aten.slice.Tensor, unit, 1, 0, -1), [0, 0, 1, 0])
    cosine = g.call(aten.sum.dim_IntList, g.mul(unit, left), [-1])
    first = g.call(aten.eq.Scalar, site.ordinals(g), site.prefix)
    return g.call(aten.masked_fill.Scalar, g.call(aten.rsub.Scalar, cosine, 1.0), first, _ABOVE_ANY_DISTANCE)


def runs(g: Builder, site: TokenSite, starts: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Runs of each row's real tokens that begin where ``starts`` is highest.

    Returns the first token of each run ``[batch, kept]``, and the column of each token's run ``[batch, tokens]``.
    """
    real = site.real(g)
    kept = g.op(
        "select_tokens", starts, site.padding, keep_per_mille=site.keep_per_mille, prefix=site.prefix, last=site.last
    )  # fmt: skip
    # Padding fills the columns that a shorter row leaves over, so columns are counted among the real ones first.
    stays = g.op("scatter_tokens", g.mul(real, 0.0), kept, g.op("gather_tokens", real, kept, 1))
    among_real = _counted(g, stays)
    own = g.op("gather_tokens", stays, kept, 1)
    filler = g.call(aten.rsub.Scalar, own, 1.0)
    behind = g.add(_counted(g, filler), g.call(aten.sum.dim_IntList, own, [1], True))
    order = g.call(aten.where.self, g.call(aten.gt.Scalar, own, 0), _counted(g, own), behind)
    order, among_real = (g.call(aten.to.dtype, x, torch.int64) for x in (order, among_real))
    columns = g.add(g.call(aten.cumsum.default, g.call(aten.ones_like.default, kept), 1), -1)
    column_of = g.op("scatter_tokens", columns, order, columns)
    column = g.op("gather_tokens", column_of, g.at_least(among_real, 0), 1)
    # Kept padding is a column of its own, so that it comes back as it is.
    return kept, g.op("scatter_tokens", column, kept, columns)


def squares(g: Builder, site: TokenSite) -> tuple[fx.Node, fx.Node]:
    """Near-squares of an image whose tokens come row by row; the same for every row of the batch."""
    content = _content(site)
    assert content is not None
    side = math.isqrt(content)
    cells = max(1, min(side, round(side * math.sqrt(site.keep_per_mille / 1000))))
    cell = torch.arange(side) * cells // side
    column = (cell[:, None] * cells + cell[None, :]).flatten()
    ends = torch.arange(site.prefix), site.prefix + cells**2 + torch.arange(site.last)
    column = torch.cat([ends[0], site.prefix + column, ends[1]])
    kept = torch.tensor([int((column == c).nonzero()[0]) for c in range(int(column.max()) + 1)])
    zero = g.call(aten.to.dtype, g.call(aten.slice.Tensor, site.real(g), 1, 0, 1), torch.int64)
    zero = g.mul(zero, 0)
    return (
        g.add(zero, g.weight("token_pool.kept", kept[None])),
        g.add(zero, g.weight("token_pool.column", column[None])),
    )


def averaged(
    g: Builder, hidden: fx.Node, size: fx.Node, kept: fx.Node, column: fx.Node
) -> tuple[fx.Node, fx.Node]:
    """Size-weighted means of the tokens of each column, and the columns' sizes; padding has size 0."""
    first = g.op("gather_tokens", hidden, kept, 1)
    weighted = g.mul(
        hidden, g.call(aten.to.dtype, g.call(aten.unsqueeze.default, size, 2), hidden.meta["val"].dtype)
    )
    places = g.call(
        aten.expand.default, g.call(aten.unsqueeze.default, column, 2), [-1, -1, g.size(hidden, 2)]
    )
    total = g.call(aten.scatter_add.default, g.call(aten.zeros_like.default, first), 1, places, weighted)
    none = g.call(aten.zeros_like.default, g.op("gather_tokens", size, kept, 1))
    sizes = g.call(aten.scatter_add.default, none, 1, column, size)
    wide = g.call(aten.unsqueeze.default, sizes, 2)
    mean = g.call(aten.div.Tensor, total, g.at_least(wide, 1e-6))
    # A column that holds nothing but padding keeps what it held.
    mean = g.call(aten.where.self, g.call(aten.gt.Scalar, wide, 0), mean, first)
    return g.call(aten.to.dtype, mean, hidden.meta["val"].dtype), sizes


def _content(site: TokenSite) -> int | None:
    tokens = site.tokens
    return tokens - site.prefix - site.last if isinstance(tokens, int) else None


def _counted(g: Builder, ones: fx.Node) -> fx.Node:
    return g.add(g.call(aten.cumsum.default, ones, 1), -1.0)


def _floor_div(g: Builder, left: fx.Node, right: fx.Node | int) -> fx.Node:
    if isinstance(right, int):
        return g.call(aten.div.Scalar_mode, left, right, rounding_mode="floor")
    return g.call(aten.div.Tensor_mode, left, right, rounding_mode="floor")
