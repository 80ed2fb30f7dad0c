"""4 bits: as they were where a matrix came from 4 bits, else rounded.

Rounding a second time costs much: what lies on a grid of 4 bits is taken from there.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .blocks import Blocks, in_blocks
from .chunks import by_rows
from .grids import on_grid
from .kind import Kind

_BLOCK_SIZE = 32
_STEPS = 15
# Shares of a block's range that the 16 numbers may span: the outermost are cut off where that makes the rest finer.
_SPANS = (1.0, 0.95, 0.9, 0.85, 0.8)


class Int4(Kind):
    """Numbers of 4 bits in blocks of 32 with a zero of their own."""

    name: ClassVar[str] = "int4"
    most_loss: ClassVar[float] = 0.04
    mixed_with: ClassVar[str | None] = "int8"

    def store(self, weight: Tensor) -> Blocks:
        found = on_grid(weight)
        return found if found is not None and found.bits == 4 else by_rows(_rounded, weight)


def _rounded(weight: Tensor) -> Blocks:
    blocks = in_blocks(weight, _BLOCK_SIZE)
    lowest, highest = blocks.aminmax(dim=2)
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    least: Tensor | None = None
    for span in _SPANS:
        scales = (highest - lowest) * (span / _STEPS)
        steps = torch.where(scales > 0, scales, 1.0)
        zeros = (-lowest * span / steps).round_().clamp_(0, _STEPS)
        numbers = (blocks / steps[..., None] + zeros[..., None]).round_().clamp_(0, _STEPS)
        error = ((numbers - zeros[..., None]) * steps[..., None] - blocks).square_().sum(-1)
        if least is None:
            least, best = error, (numbers, scales, zeros)
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = (
            torch.where(better[..., None], numbers, best[0]),
            torch.where(better, scales, best[1]),
            torch.where(better, zeros, best[2]),
        )
    numbers, scales, zeros = best
    return Blocks.of(
        numbers.to(torch.uint8), int(weight.shape[1]), 4, scales, zeros.to(torch.uint8).contiguous()
    )
