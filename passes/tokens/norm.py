"""Norm of the hidden state: a control that looks at the stream and not at attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.builder import Builder

from .method import Scorer, TokenSite


@dataclass(frozen=True)
class Norm(Scorer):
    """Keep the tokens whose hidden state has the largest L2 norm (control)."""

    name: ClassVar[str] = "norm"

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        return g.call(torch.ops.aten.linalg_vector_norm.default, site.hidden, 2.0, [-1])
