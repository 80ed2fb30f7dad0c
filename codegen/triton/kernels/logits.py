"""One tile of masked attention logits, shared by every kernel that needs probabilities."""

# Kernels are Triton's language, in which an annotation means something else.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    # The interpreter multiplies the bit patterns of bfloat16; widening first gives what the hardware gives.
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def load_tile(pointer, rows, stride, row_count, width, BLOCK_WIDTH: tl.constexpr):
    """Rows ``[len(rows), BLOCK_WIDTH]`` of a matrix whose last dim is contiguous; zeros outside it."""
    columns = tl.arange(0, BLOCK_WIDTH)
    inside = (rows < row_count)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def masked_logits(
    q,
    k,
    mask,
    padding,
    query_positions,
    key_positions,
    rows,
    columns,
    queries,
    keys,
    stride_mask_row,
    stride_mask_column,
    scale,
    softcap,
    SOFTCAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BOOL_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Scaled, capped and masked logits ``[len(rows), len(columns)]`` in float32; -inf where a key is hidden.

    ``mask``, ``padding`` and the positions point at this program's batch row and head, or are None.
    """
    zero = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    logits = dot(q, tl.trans(k), zero, PRECISION, UPCAST) * scale
    if SOFTCAP:
        # tanh(x) = 2 * sigmoid(2x) - 1, which neither backend lacks.
        logits = (2.0 * tl.sigmoid(2.0 * logits / softcap) - 1.0) * softcap
    row_inside = rows < queries
    visible = (row_inside[:, None] | True) & (columns < keys)[None, :]
    if mask is not None:
        at = rows.to(tl.int64)[:, None] * stride_mask_row + columns.to(tl.int64)[None, :] * stride_mask_column
        value = tl.load(mask + at, mask=visible & row_inside[:, None], other=0)
        if BOOL_MASK:
            visible = visible & (value != 0)
        else:
            logits += value.to(tl.float32)
    if padding is not None:
        real = tl.load(padding + columns, mask=columns < keys, other=0)
        visible = visible & (real != 0)[None, :]
    if CAUSAL or WINDOW > 0:
        if query_positions is not None:
            query_at = tl.load(query_positions + rows, mask=row_inside, other=0)
        else:
            query_at = rows.to(tl.int64)
        if key_positions is not None:
            key_at = tl.load(key_positions + columns, mask=columns < keys, other=0)
        else:
            key_at = columns.to(tl.int64)
        distance = query_at[:, None] - key_at[None, :]
        if CAUSAL:
            visible = visible & (distance >= 0)
        if WINDOW > 0:
            visible = visible & (distance < WINDOW) & (distance > -WINDOW)
    return tl.where(visible, logits, float("-inf"))
