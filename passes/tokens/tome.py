"""Token merging (ToMe, Bolya et al. 2023, "Token Merging: Your ViT But Faster")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.analyses.attention_facts import is_causal
from tersor.ir.builder import Builder

from .method import Reduction, TokenMethod, TokenSite
from .stand_in import log_size


@dataclass(frozen=True)
class ToMe(TokenMethod):
    """Merge the tokens with the most similar keys, pair by pair, weighted by size (ToMe)."""

    name: ClassVar[str] = "tome"
    least_keep: ClassVar[int] = 500
    merges: ClassVar[bool] = True

    def why_not(self, site: TokenSite) -> str | None:
        if is_causal(site.attention):
            return "attention is causal: a merged token would carry later content to an earlier position"
        if site.keep_per_mille < self.least_keep:
            return f"keep={site.keep_per_mille / 1000:g} merges more than half of the tokens at once; use more layers"
        return None

    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        size = site.carried.get("size") or site.real(g)
        metric = g.mean(site.key, [1])
        matched = g.op(
            "match_tokens",
            metric,
            site.padding,
            keep_per_mille=site.keep_per_mille,
            prefix=site.prefix,
            last=site.last,
        )
        kept, source, target, column = (g.item(matched, i) for i in range(4))
        merged = g.op("merge_tokens", site.hidden, size, kept, source, target)
        hidden, sizes = g.item(merged, 0), g.item(merged, 1)
        return Reduction(
            hidden=hidden,
            index=kept,
            restore=lambda b, _, reduced: b.op("gather_tokens", reduced, column, 1),
            carried={"size": sizes},
            key_bias=log_size(g, sizes) if site.proportional else None,
        )
