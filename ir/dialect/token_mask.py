"""A mask that says what it means: padding, causality and window over token indices."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import dialect_op
from .attention import visible_keys


def _shape(
    padding: Tensor | None, queries: int, keys: int, causal: bool, window: int, device: torch.device
) -> Tensor:
    batch = 1 if padding is None else padding.shape[0]
    rows = queries if causal or window > 0 else 1
    return torch.empty(batch, 1, rows, keys, dtype=torch.bool, device=device)


def _flops(*_: object) -> int:
    return 0


@dialect_op(
    "token_mask",
    "(Tensor? padding, SymInt queries, SymInt keys, bool causal, int window, Device device) -> Tensor",
    shape=_shape,
    flops=_flops,
)
def token_mask(
    padding: Tensor | None, queries: int, keys: int, causal: bool, window: int, device: torch.device
) -> Tensor:
    """Bool ``[batch or 1, 1, queries or 1, keys]``, True where query i may see key j.

    Raising folds it into the ``attention`` that reads it; it is computed only where something else reads it.
    """
    visible = visible_keys(queries, keys, device, padding, None, None, causal, window)
    if visible is None:
        return torch.ones(1, 1, 1, keys, dtype=torch.bool, device=device)
    return (
        visible.clone() if padding is not None and visible.dim() == 4 and not (causal or window) else visible
    )
