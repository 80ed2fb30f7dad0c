"""Attention received: the column sums of the attention matrix (PoWER-BERT, Goyal et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.builder import Builder

from .method import Scorer, TokenSite


@dataclass(frozen=True)
class ReceivedAttention(Scorer):
    """Keep the tokens that receive most attention, summed over queries and heads (PoWER-BERT)."""

    name: ClassVar[str] = "received-attention"

    def why_not(self, site: TokenSite) -> str | None:
        return site.why_no_importance()

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        received = site.importance(g, lambda b: b.call(torch.ops.aten.unsqueeze.default, site.real(b), 1))
        return g.mean(received, [1])
