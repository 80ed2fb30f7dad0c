"""Where steps end and slots move, so that what a token gives does not depend on which tokens are run beside it.

Models that round their activations need it: what two orders of a sum differ by in the last place puts some of them on
the other side of a step, and after a few layers that is as much as rounding costs.  ONNX Runtime multiplies queries by
128 keys at a time, and sums over the head dim in another order where the last of these blocks has 64 keys or fewer.
So tokens of one step, and those of plain decoding in their place, must find as many chunks of 64 slots begun; and what
lies in a slot must move to another one, or make room, at the same token for both.

The last of an odd number of tokens is fed twice (an odd last row of a product is summed in an order of its own), so
that one alone in slot ``p`` finds ``p + 2`` in use: a chunk ends with the last slot but one of every 64.
"""

from __future__ import annotations

CHUNK = 64
# Of keys that are multiplied together.
BLOCK = 128


def left_in_chunk(filled: int) -> int:
    """How many tokens a step may have behind so many slots."""
    return CHUNK - (filled + 1) % CHUNK


def end_of_chunk(filled: int) -> int:
    """How many slots are in use when the chunk ends, that of a token fed twice included."""
    return filled + left_in_chunk(filled) + 1


def whole_blocks(slots: int) -> int:
    """So many slots or a few more."""
    return -(-slots // BLOCK) * BLOCK
