"""8 bits: the largest of a block is 127 steps."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .blocks import Blocks, in_blocks
from .chunks import by_rows
from .kind import Kind

# Wider blocks are read faster and round activations more coarsely.  What a vocabulary's matrix gives goes into no other
# layer, where that would add up, and is most of what a step reads.
_BLOCK_SIZE, _WIDE_BLOCK_SIZE, _VOCABULARY = 32, 128, 1 << 15
_STEPS = 127


class Int8(Kind):
    """Symmetric numbers of 8 bits in blocks of 32, of a vocabulary's matrix 128."""

    name: ClassVar[str] = "int8"

    def store(self, weight: Tensor) -> Blocks:
        size = _WIDE_BLOCK_SIZE if weight.shape[0] >= _VOCABULARY else _BLOCK_SIZE
        return by_rows(partial(_rounded, block_size=size), weight)


def _rounded(weight: Tensor, block_size: int) -> Blocks:
    blocks = in_blocks(weight, block_size)
    scales = blocks.abs().amax(-1) / _STEPS
    steps = torch.where(scales > 0, scales, 1.0)[..., None]
    numbers = (blocks / steps).round_().add_(128).to(torch.uint8)
    return Blocks.of(numbers, int(weight.shape[1]), 8, scales)
