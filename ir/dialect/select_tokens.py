"""Choose which tokens of each row stay."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import dialect_op
from ._traits import CHOICE

Size = int | torch.SymInt
LARGEST = torch.finfo(torch.float32).max


def kept_count(tokens: Size, fixed: int, keep_per_mille: int) -> Size:
    """``fixed + ceil(keep * (tokens - fixed))`` in integer arithmetic, so that it stays exact when symbolic."""
    return fixed + ((tokens - fixed) * keep_per_mille + 999) // 1000


def token_ordinals(padding: Tensor) -> tuple[Tensor, Tensor]:
    """Index of every token among its row's real ones ``[batch, tokens]``, and how many there are ``[batch, 1]``."""
    real = padding.to(torch.int64)
    return real.cumsum(1) - 1, real.sum(1, keepdim=True)


def _shape(
    scores: Tensor, padding: Tensor | None = None, *, keep_per_mille: int, prefix: int = 0, last: int = 0
) -> Tensor:
    count = kept_count(scores.shape[1], prefix + last, keep_per_mille)
    return scores.new_empty(scores.shape[0], count, dtype=torch.int64)


def _flops(*_: object, **__: object) -> int:
    return 0


def _check(
    scores: Tensor, padding: Tensor | None = None, *, keep_per_mille: int, prefix: int = 0, last: int = 0
) -> str | None:
    if scores.dim() != 2:
        return f"scores have {scores.dim()} dims, expected [batch, tokens]"
    if not 0 < keep_per_mille <= 1000:
        return f"keep_per_mille {keep_per_mille} is outside 1 to 1000"
    return None


@dialect_op(
    "select_tokens",
    "(Tensor scores, Tensor? padding=None, *, int keep_per_mille, int prefix=0, int last=0) -> Tensor",
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=CHOICE,
)
def select_tokens(
    scores: Tensor, padding: Tensor | None = None, *, keep_per_mille: int, prefix: int = 0, last: int = 0
) -> Tensor:
    """Indices ``[batch, kept]`` int64, ascending, of the tokens to keep.

    Args:
        scores: ``[batch, tokens]``, higher stays; of equal scores the earlier token stays.  Infinities count as the
            largest float32 of their sign and NaN as the lowest: whatever its score, a token ranks below those that
            are protected and above padding.
        padding: bool ``[batch, tokens]``, True for real tokens.  Each row keeps its own share of its real tokens,
            as it would alone; the columns left over are filled with padding, never with dropped tokens.
        keep_per_mille: share of the tokens that are not protected, in thousandths.
        prefix, last: how many real tokens at the start and the end of each row always stay.
    """
    tokens = scores.shape[1]
    fixed = prefix + last
    count = kept_count(tokens, fixed, keep_per_mille)
    if padding is None:
        padding = torch.ones_like(scores, dtype=torch.bool)
    ordinal, real = token_ordinals(padding)
    protected = padding & ((ordinal < prefix) | (ordinal >= real - last))
    priority = scores.to(torch.float32).nan_to_num(nan=-LARGEST, posinf=LARGEST, neginf=-LARGEST)
    priority = priority.masked_fill(protected, float("inf")).masked_fill(~padding, float("-inf"))
    order = priority.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(tokens, device=scores.device).expand_as(order)
    )
    budget = torch.minimum(real, kept_count(real.clamp(min=fixed), fixed, keep_per_mille))  # type: ignore[arg-type]
    chosen = padding & (rank < budget)
    # Real tokens that were chosen come first, then padding as filler; dropped tokens never fill a column.
    tier = chosen.to(torch.int64) * 2 + (~padding).to(torch.int64)
    kept = tier.argsort(dim=1, descending=True, stable=True)[:, :count]
    return kept.sort(dim=1).values
