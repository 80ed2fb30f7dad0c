"""Rounding a matrix some rows at a time: what is computed of them stays small beside the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor

from .blocks import Blocks

_ELEMENTS = 1 << 21


@overload
def by_rows(store: Callable[[Tensor], Blocks], weight: Tensor) -> Blocks: ...


@overload
def by_rows(store: Callable[[Tensor], Blocks | None], weight: Tensor) -> Blocks | None: ...


def by_rows(store: Callable[[Tensor], Blocks | None], weight: Tensor) -> Blocks | None:
    """``store(weight)``, for a ``store`` of which every row is by itself; None where it is that of some rows."""
    rows = max(1, _ELEMENTS // max(1, int(weight.shape[1])))
    parts: list[Blocks] = []
    for chunk in torch.split(weight.detach(), rows):
        part = store(chunk)
        if part is None:
            return None
        parts.append(part)
    first = parts[0]
    if len(parts) == 1:
        return first
    return Blocks(
        first.width,
        first.bits,
        torch.cat([part.quants for part in parts]),
        torch.cat([part.scales for part in parts]),
        _joined([part.zeros for part in parts]),
        _joined([part.offsets for part in parts]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None
