"""Bipartite soft matching: which tokens merge into which (ToMe, Bolya et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import dialect_op
from ._traits import CHOICE
from .select_tokens import Size, kept_count, token_ordinals


def _counts(tokens: Size, fixed: int, keep_per_mille: int) -> tuple[Size, Size]:
    kept = kept_count(tokens, fixed, keep_per_mille)
    return kept, tokens - kept


def _shape(
    metric: Tensor, padding: Tensor | None = None, *, keep_per_mille: int, prefix: int = 0, last: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, _ = metric.shape
    kept, merged = _counts(tokens, prefix + last, keep_per_mille)
    sizes = (kept, merged, merged, tokens)
    return tuple(metric.new_empty(batch, size, dtype=torch.int64) for size in sizes)  # type: ignore[return-value]


def _flops(metric: Tensor, *_: object, **__: object) -> object:
    batch, tokens, width = metric.shape
    return 2 * batch * tokens * tokens * width


def _check(
    metric: Tensor, padding: Tensor | None = None, *, keep_per_mille: int, prefix: int = 0, last: int = 0
) -> str | None:
    if metric.dim() != 3:
        return f"metric has {metric.dim()} dims, expected [batch, tokens, features]"
    if not 500 <= keep_per_mille <= 1000:
        return f"keep_per_mille {keep_per_mille} is outside 500 to 1000: at most half of the tokens can merge at once"
    return None


@dialect_op(
    "match_tokens",
    "(Tensor metric, Tensor? padding=None, *, int keep_per_mille, int prefix=0, int last=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=CHOICE,
)
def match_tokens(
    metric: Tensor, padding: Tensor | None = None, *, keep_per_mille: int, prefix: int = 0, last: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split the tokens alternately into sources and targets and merge the most similar pairs.

    Real tokens past the prefix are counted from 0; odd ones may be merged away, even ones (and the prefix) stay.

    Args:
        metric: ``[batch, tokens, features]``, compared by cosine (head-averaged keys in the paper).
        padding: bool ``[batch, tokens]``, True for real tokens; each row merges as many as it would alone.
        keep_per_mille: share of the tokens between the protected ones that stays, 500 to 1000.
        prefix, last: real tokens at each end of a row that neither merge nor are merged into.

    Returns:
        ``kept`` int64 ``[batch, k]`` ascending; ``source`` int64 ``[batch, tokens - k]``, the tokens that leave;
        ``target`` int64 ``[batch, tokens - k]``, the column of ``kept`` that each of them joins; ``column`` int64
        ``[batch, tokens]``, the column that every token is in afterwards.  A source that is padding joins column 0
        and must carry no weight.
    """
    batch, tokens, _ = metric.shape
    if padding is None:
        padding = torch.ones(batch, tokens, dtype=torch.bool, device=metric.device)
    count, _ = _counts(tokens, prefix + last, keep_per_mille)
    ordinal, real = token_ordinals(padding)
    free = padding & (ordinal >= prefix) & (ordinal < real - last)
    odd = free & ((ordinal - prefix) % 2 == 1)
    even = free & ~odd
    unit = torch.nn.functional.normalize(metric.to(torch.float32), dim=-1)
    similarity = torch.matmul(unit, unit.transpose(-1, -2))
    similarity = similarity.masked_fill(~even[:, None, :], float("-inf"))
    best, partner = similarity.max(dim=-1)
    best = best.masked_fill(~odd, float("-inf"))
    order = best.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(tokens, device=metric.device).expand_as(order)
    )
    budget = real - torch.minimum(
        real, kept_count(real.clamp(min=prefix + last), prefix + last, keep_per_mille)
    )  # type: ignore[arg-type]
    leaves = odd & (rank < budget)
    # Leaving tokens first, then padding to fill the columns of shorter rows, each in the order of the tokens.
    tier = leaves.to(torch.int64) * 2 + (~padding).to(torch.int64)
    by_tier = tier.argsort(dim=1, descending=True, stable=True)
    source = by_tier[:, : tokens - count].sort(dim=1).values
    stays = torch.ones_like(padding).scatter_(1, source, False)
    kept = stays.to(torch.int64).argsort(dim=1, descending=True, stable=True)[:, :count]
    column = stays.to(torch.int64).cumsum(1) - 1
    target = column.gather(1, partner.gather(1, source))
    target = torch.where(leaves.gather(1, source), target, torch.zeros_like(target))
    return kept, source, target, column.scatter(1, source, target)
