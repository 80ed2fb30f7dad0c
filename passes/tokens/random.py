"""Random choice: the control that every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from tersor.ir.builder import Builder

from .method import Scorer, TokenSite

aten = torch.ops.aten
_PRIME = 46337  # cubing permutes the residues of a prime that leaves 2 when divided by 3


@dataclass(frozen=True)
class Random(Scorer):
    """Keep a pseudo-random subset, the same one for rows of one length (control)."""

    name: ClassVar[str] = "random"
    seed: int = field(default=0, metadata={"help": "another seed, another subset"})

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        x = g.add(g.mul(site.ordinals(g), 31321), (7919 * (self.seed + 1) + 104729 * site.layer) % _PRIME)
        for _ in range(3):
            x = g.add(g.call(aten.remainder.Scalar, x, _PRIME), 17)
            x = g.call(aten.remainder.Scalar, g.mul(g.mul(x, x), x), _PRIME)
        return g.call(aten.to.dtype, x, torch.float32)
