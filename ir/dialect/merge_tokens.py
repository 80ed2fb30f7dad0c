"""Merge matched tokens by their size-weighted mean (ToMe, Bolya et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import dialect_op
from ._traits import Role, Traits


def _shape(x: Tensor, size: Tensor, kept: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(kept.shape[0], kept.shape[1], x.shape[2]), size.new_empty(kept.shape[0], kept.shape[1])


def _flops(*_: object) -> int:
    return 0


def _check(x: Tensor, size: Tensor, kept: Tensor, source: Tensor, target: Tensor) -> str | None:
    return None if x.dim() == 3 else f"x has {x.dim()} dims, expected [batch, tokens, features]"


@dialect_op(
    "merge_tokens",
    "(Tensor x, Tensor size, Tensor kept, Tensor source, Tensor target) -> (Tensor, Tensor)",
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=Traits(Role.MOVES, content=("x",), index="kept"),
)
def merge_tokens(
    x: Tensor, size: Tensor, kept: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Add each source token to its target column, weighted by how many tokens each already stands for.

    Args:
        x: ``[batch, tokens, features]``.
        size: float ``[batch, tokens]``, tokens each one stands for; 0 for padding.
        kept, source, target: the first three of what ``match_tokens`` returns.

    Returns:
        the merged tokens ``[batch, kept, features]`` and their sizes ``[batch, kept]``; the sizes of a row keep
        their sum.  A column of size 0, which is padding, keeps the token that it held.
    """
    width = x.shape[2]
    weighted = x * size[:, :, None]
    total = weighted.gather(1, kept[:, :, None].expand(-1, -1, width))
    total = total.scatter_add(1, target[:, :, None].expand(-1, -1, width),
                              weighted.gather(1, source[:, :, None].expand(-1, -1, width)))  # fmt: skip
    sizes = size.gather(1, kept).scatter_add(1, target, size.gather(1, source))
    wide = sizes[:, :, None]
    mean = (total / wide.clamp(min=1e-6)).to(x.dtype)
    return torch.where(wide > 0, mean, x.gather(1, kept[:, :, None].expand(-1, -1, width))), sizes
