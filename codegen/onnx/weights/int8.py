"""8 bits: the largest of a block is 127 steps."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .blocks import Blocks, in_blocks
from .chunks import by_rows
from .kind import Kind

# Wider blocks are read and multiplied faster, and round activations more coarsely, which costs even ones little.  A
# vocabulary's matrix is most of what a step reads; what it scores goes into no other layer, where that would add up.
_BLOCK_SIZE, _WIDE_BLOCK_SIZE, _VOCABULARY = 32, 128, 1 << 15
_STEPS = 127
# Of a row, the part that its last block may have behind it.
_PADDING = 16


class Int8(Kind):
    """Symmetric numbers of 8 bits in blocks of 32, or of 128 where the input is even or the outputs are tokens."""

    name: ClassVar[str] = "int8"
    smooths: ClassVar[bool] = True

    def __init__(self, block_size: int = _BLOCK_SIZE) -> None:
        self._block_size = block_size

    @property
    def of_even(self) -> Int8:
        return Int8(_WIDE_BLOCK_SIZE)

    def store(self, weight: Tensor) -> Blocks:
        size = _WIDE_BLOCK_SIZE if weight.shape[0] >= _VOCABULARY else self._block_size
        # What lies behind the end of a row is stored and multiplied too.
        while size > _BLOCK_SIZE and -int(weight.shape[1]) % size > weight.shape[1] // _PADDING:
            size //= 2
        return by_rows(partial(_rounded, block_size=size), weight)


def _rounded(weight: Tensor, block_size: int) -> Blocks:
    blocks = in_blocks(weight, block_size)
    scales = blocks.abs().amax(-1) / _STEPS
    steps = torch.where(scales > 0, scales, 1.0)[..., None]
    numbers = (blocks / steps).round_().add_(128).to(torch.uint8)
    return Blocks.of(numbers, int(weight.shape[1]), 8, scales)
