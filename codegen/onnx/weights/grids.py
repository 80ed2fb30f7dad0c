"""Finding the blocks that a matrix was dequantised from, in its values.

What a GGUF file (or another blockwise format) held was `scale * q`, or `scale * q - minimum`, in blocks of 16 or 32
numbers.  Scale and q are few bits each, so that their product is a float32 without rounding: in which steps the
numbers of a block lie is found by dividing the largest by 1, 2, 3, ..., and proved by computing all of them again.
That needs no file, works behind any loader, and for rows in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .blocks import Blocks, in_blocks
from .chunks import by_rows

# The largest number of a block, in steps: always of Q8_0, Q5_0 and Q4_0; then what Q6_K may have, and all others.
_SYMMETRIC = tuple(dict.fromkeys((127, 16, 8, *range(32, 0, -1), *range(128, 32, -1))))
# From the smallest number of a block to the largest, in steps: of Q4_K (Q4_1) and Q5_K (Q5_1).
_AFFINE_4, _AFFINE_5 = range(15, 0, -1), range(31, 15, -1)
_SYMMETRIC_SIZES, _AFFINE_SIZE = (32, 16), 32
# A K-quant's scale is a float16 times 6 bits.
_SCALE_BITS = 17
# What a difference of two rounded products may be off by, in units of the last place of the largest.
_PLACES = 4
# Blocks that are looked at before all are.
_SAMPLE = 256


def on_grid(weight: Tensor) -> Blocks | None:
    """``weight [out, in]``, float32, as the blocks that it was dequantised from.

    Returns:
        blocks whose values are those of ``weight``: bit for bit where the grid is symmetric, else to within rounding of
        one sum; None where its numbers lie on no grid of few enough steps.
    """
    weight = weight.detach()
    for store in _forms(int(weight.shape[1])):
        if store(weight[_spread(weight)]) is not None:
            found = by_rows(store, weight)
            if found is not None:
                return found
    return None


def _spread(weight: Tensor) -> slice:
    """Some rows from everywhere."""
    rows = max(1, _SAMPLE * _AFFINE_SIZE // max(1, int(weight.shape[1])))
    return slice(None, None, max(1, int(weight.shape[0]) // rows))


def _forms(width: int) -> Iterator[Callable[[Tensor], Blocks | None]]:
    # Fewer bits first: what lies on the grid of 4 bits lies on that of 8.
    if width % _AFFINE_SIZE == 0:
        yield lambda weight: _symmetric(weight, _AFFINE_SIZE, 4)
        yield lambda weight: _affine(weight, 4, [*_AFFINE_4])
    for size in _SYMMETRIC_SIZES:
        if width % size == 0:
            yield lambda weight, size=size: _symmetric(weight, size, 8)  # type: ignore[misc]
    if width % _AFFINE_SIZE == 0:
        yield lambda weight: _affine(weight, 8, [*_AFFINE_5, *_AFFINE_4])


def _symmetric(weight: Tensor, block_size: int, bits: int) -> Blocks | None:
    """``scale * q``, q from ``-2 ** (bits - 1)`` up."""
    blocks = in_blocks(weight, block_size)
    flat = blocks.reshape(-1, block_size)
    largest = flat.gather(1, flat.abs().argmax(1, keepdim=True))[:, 0]
    low = 1 << (bits - 1)
    scales, numbers = torch.zeros_like(largest), torch.zeros(flat.shape, dtype=torch.int16)
    left = (largest != 0).nonzero()[:, 0]
    for steps in (n for n in _SYMMETRIC if n <= low):
        if not len(left):
            break
        some = flat[left]
        # The sign is such that the largest is the lowest number, of which there is one more than of positive ones.
        scale = -largest[left] / steps
        q = (some / scale[:, None]).round_().clamp_(-low, low - 1)
        right = (q * scale[:, None] == some).all(1)
        solved = left[right]
        scales[solved], numbers[solved] = scale[right], q[right].to(torch.int16)
        left = left[~right]
    if len(left):
        return None
    shape = (*blocks.shape[:2],)
    unsigned = (numbers + low).to(torch.uint8).reshape(blocks.shape)
    return Blocks.of(unsigned, int(weight.shape[1]), bits, scales.reshape(shape))


def _affine(weight: Tensor, bits: int, steps: list[int]) -> Blocks | None:
    """``scale * q + lowest``, q from 0 up."""
    blocks = in_blocks(weight, _AFFINE_SIZE)
    flat = blocks.reshape(-1, _AFFINE_SIZE)
    lowest, highest = flat.aminmax(dim=1)
    tolerance = torch.maximum(lowest.abs(), highest.abs()) * (torch.finfo(torch.float32).eps * _PLACES)
    scales, numbers = torch.zeros_like(lowest), torch.zeros(flat.shape, dtype=torch.uint8)
    left = (highest != lowest).nonzero()[:, 0]
    for count in steps:
        if not len(left):
            break
        some, low = flat[left], lowest[left]
        scale = _short((highest[left] - low) / count)
        q = ((some - low[:, None]) / scale[:, None]).round_()
        off = (q * scale[:, None] + low[:, None] - some).abs()
        right = (off <= tolerance[left, None]).all(1)
        solved = left[right]
        scales[solved], numbers[solved] = scale[right], q[right].to(torch.uint8)
        left = left[~right]
    if len(left):
        return None
    shape = (*blocks.shape[:2],)
    offsets, scales = lowest.reshape(shape), scales.reshape(shape)
    if bits == 4:
        # The product's zero is 8 where none is given.
        return Blocks.of(
            numbers.reshape(blocks.shape), int(weight.shape[1]), 4, scales, None, offsets + 8 * scales
        )
    return Blocks.of((numbers + 128).reshape(blocks.shape), int(weight.shape[1]), 8, scales, None, offsets)


def _short(scale: Tensor) -> Tensor:
    """``scale`` in as many bits as a K-quant's has: the range that it was read off is rounded in its last places."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * (1 << _SCALE_BITS)).round_(), exponent - _SCALE_BITS)
