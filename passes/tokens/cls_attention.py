"""Attention of the class token (EViT, Liang et al. 2022, "Not All Patches Are What You Need")."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import is_causal
from tersor.ir.builder import Builder
from tersor.ir.errors import RefusedError

from .method import Reduction, Scorer, TokenSite, drop, select

aten = torch.ops.aten
# What attention takes beside the operands and gives on to the operator that computes single rows of it.
_SETTINGS = ("scale", "causal", "window", "softcap")
_LEAST = 1e-6  # keeps a mean of tokens that nothing attends to a mean


@dataclass(frozen=True)
class ClsAttention(Scorer):
    """Keep the tokens that the class token attends to most (EViT)."""

    name: ClassVar[str] = "cls-attention"
    heads: Literal["mean", "max"] = field(default="mean", metadata={"help": "how heads are combined"})
    fuse: bool = field(
        default=False, metadata={"help": "the lowest of the kept tokens becomes the mean of the dropped ones"}
    )

    def why_not(self, site: TokenSite) -> str | None:
        return no_class_token(site)

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        rows = class_rows(g, site)
        return g.mean(rows, [1]) if self.heads == "mean" else g.call(aten.amax.default, rows, [1])

    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        score = self.score(g, site)
        reduction = drop(g, site, select(g, site, score, site.keep_per_mille))
        if self.fuse:
            reduction.hidden = fused(g, site, score, reduction)
        return reduction


def no_class_token(site: TokenSite) -> str | None:
    """Why a site has no class token whose attention means anything and can be had, or None."""
    if (reason := _why_no_rows(site)) is not None:
        return reason
    if is_causal(site.attention):
        return "attention is causal, so the first token sees nothing but itself; use received-attention"
    if site.prefix < 1:
        return "the model has no class token: nothing reads position 0 and no constant token comes first"
    return None


def _why_no_rows(site: TokenSite) -> str | None:
    if site.attends.rows_by is not None:
        return None
    return f"{site.attention.name} is {site.operator}, of which single rows cannot be had"


def class_rows(g: Builder, site: TokenSite) -> fx.Node:
    """The class token's attention in every head, ``[batch, heads, tokens]``.

    Raises:
        RefusedError: the attention is an operator of which single rows cannot be had, as ``no_class_token`` tells too.
    """
    if (reason := _why_no_rows(site)) is not None:
        raise RefusedError(reason)
    mask, positions = site.operand("mask"), site.operand("query_positions")
    if site.padding is None:
        row, query = None, g.call(aten.slice.Tensor, site.query, 2, 0, 1)
    else:
        # Under left padding the class token is the first real one of its row.
        row = g.call(aten.argmax.default, g.call(aten.to.dtype, site.padding, torch.int64), 1, True)
        query = g.op("gather_tokens", site.query, row, 2)
    if mask is not None:
        for _ in range(4 - mask.meta["val"].dim()):
            mask = g.call(aten.unsqueeze.default, mask, 0)
        mask = _first_row(g, mask, row, 2)
    positions = row if positions is None else _first_row(g, positions, row, 1)
    settings = {name: value for name, value in site.attention.kwargs.items() if name in _SETTINGS}
    rows_by = site.attends.rows_by
    assert rows_by is not None
    rows = g.op(
        rows_by, query, site.key, mask, site.padding, positions, site.operand("key_positions"),
        site.operand("sinks"), **settings,
    )  # fmt: skip
    rows = g.call(aten.select.int, rows, 2, 0)
    size = site.carried.get("size")
    if not site.proportional or size is None:
        return rows
    # The attention itself adds log(size) to its logits: these are the probabilities that it then has.
    rows = g.mul(rows, g.call(aten.unsqueeze.default, size, 1))
    return g.call(aten.div.Tensor, rows, g.call(aten.sum.dim_IntList, rows, [-1], True))


def _first_row(g: Builder, value: fx.Node, row: fx.Node | None, dim: int) -> fx.Node:
    if value.meta["val"].shape[dim] == 1:
        return value
    if row is None:
        return g.call(aten.slice.Tensor, value, dim, 0, 1)
    return g.op("gather_tokens", value, row, dim)


def fused(g: Builder, site: TokenSite, score: fx.Node, reduction: Reduction) -> fx.Node:
    """The kept tokens, where the lowest has become the score-weighted mean of itself and all the dropped ones.

    The paper appends their weighted sum as one token more.  A model that was not trained with it has never seen a
    token of so small a norm, and a token needs a place among the positions: the best of the fused ones lends its own.
    """
    index, real = reduction.index, site.real(g)
    ordinal = g.op("gather_tokens", site.ordinals(g), index, 1)
    past = g.add(g.call(aten.sum.dim_IntList, real, [1], True), -float(site.last))
    free = g.call(
        aten.logical_and.default,
        g.call(aten.ge.Scalar, ordinal, site.prefix),
        g.call(aten.lt.Tensor, ordinal, past),
    )
    free = g.call(
        aten.logical_and.default, free, g.call(aten.gt.Scalar, g.op("gather_tokens", real, index, 1), 0)
    )
    kept = g.op("gather_tokens", score, index, 1)
    kept = g.call(aten.masked_fill.Scalar, kept, g.call(aten.logical_not.default, free), float("inf"))
    lowest = g.call(aten.argmin.default, kept, 1, True)
    free = g.call(aten.to.dtype, free, torch.float32)
    # Where every kept token is protected, the lowest is one of them and must stay.
    carrier = g.op(
        "scatter_tokens",
        g.call(aten.zeros_like.default, free),
        lowest,
        g.op("gather_tokens", free, lowest, 1),
    )
    weight = g.mul(g.op("scatter_tokens", real, index, carrier), g.add(score, _LEAST))
    share = g.call(
        aten.div.Tensor,
        weight,
        g.at_least(g.call(aten.sum.dim_IntList, weight, [1], True), 1e-12),
    )
    share = g.call(aten.to.dtype, g.call(aten.unsqueeze.default, share, 1), site.hidden.meta["val"].dtype)
    mean = g.call(aten.matmul.default, share, site.hidden)
    chosen = g.call(aten.unsqueeze.default, g.call(aten.gt.Scalar, carrier, 0), 2)
    return g.call(aten.where.self, chosen, mean, reduction.hidden)
