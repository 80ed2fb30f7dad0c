"""Attention of the class token (EViT, Liang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import fx

from tersor.ir.builder import Builder

from .method import Scorer, TokenSite

aten = torch.ops.aten


@dataclass(frozen=True)
class ClsAttention(Scorer):
    """Keep the tokens that the class token attends to most (EViT)."""

    name: ClassVar[str] = "cls-attention"
    heads: Literal["mean", "max"] = field(default="mean", metadata={"help": "how heads are combined"})

    def why_not(self, site: TokenSite) -> str | None:
        if site.attention.kwargs.get("causal"):
            return "attention is causal, so the first token sees nothing but itself; use received-attention"
        if site.prefix < 1:
            return "the model has no class token: nothing reads position 0 and no constant token comes first"
        return None

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        rows = class_rows(g, site)
        pooled = g.mean(rows, [1]) if self.heads == "mean" else g.call(aten.amax.default, rows, [1])
        return pooled


def class_rows(g: Builder, site: TokenSite) -> fx.Node:
    """The class token's attention in every head, ``[batch, heads, tokens]``."""
    mask = site.operand("mask")
    positions = site.operand("query_positions")
    if site.padding is None:
        query = g.call(aten.slice.Tensor, site.query, 2, 0, 1)
        row = None
    else:
        # Under left padding the class token is the first real one of its row.
        row = g.call(aten.argmax.default, g.call(aten.to.dtype, site.padding, torch.int64), 1, True)
        query = g.op("gather_tokens", site.query, row, 2)
    if mask is not None:
        mask = _first_row(g, mask, row, mask.meta["val"].dim() - 2)
    if positions is not None:
        positions = _first_row(g, positions, row, 1)
    rows = g.op(
        "attention_weights", query, site.key, mask, site.padding, positions, site.operand("key_positions"),
        site.operand("sinks"), **site.settings,
    )  # fmt: skip
    return g.call(aten.select.int, rows, 2, 0)


def _first_row(g: Builder, value: fx.Node, row: fx.Node | None, dim: int) -> fx.Node:
    if value.meta["val"].shape[dim] == 1:
        return value
    return (
        g.call(aten.slice.Tensor, value, dim, 0, 1) if row is None else g.op("gather_tokens", value, row, dim)
    )
