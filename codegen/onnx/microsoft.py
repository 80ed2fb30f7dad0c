"""Attention by ONNX Runtime's own operators, for ``ops="ort"``.

``GroupQueryAttention`` where attention is causal, because it skips the half that is hidden; else
``MultiHeadAttention``; written out where neither fits.  Both pay where attention takes time: from some 500 tokens on,
the more the longer.  On fewer they are level with what is written out, or lose a tenth of the little that attention
takes there, and a graph for any length cannot choose by it.  The standard's ``Attention`` (opset 23) wins a tenth on
short sequences and loses on long ones to these; it is not used.  `docs/benchmarks.md` (Operators) has the times of all
of them side by side; `benchmarks.operators` measures them.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression, same_size

from .emitter import MICROSOFT, Emitter
from .key_bias import split_key_bias, with_bias, with_one
from .masks import Sight, bias, same_for_heads, zero_blind, zero_blind_tokens
from .peephole import heads_as_width, split_heads, tokens_before_heads


def takes_group_query(e: Emitter, sight: Sight, value: ir.Value) -> bool:
    """Whether ``GroupQueryAttention`` fits: causal over token indices, from as many queries as keys, in float32."""
    q, k, v = e.fake(sight.query), e.fake(sight.key), e.fake(value)
    indices = sight.query_positions is None and sight.key_positions is None
    square = expression(q.shape[2]) == expression(k.shape[2])
    width = q.shape[3]
    wide = isinstance(width, int) and width % 8 == 0 and same_size(width, v.shape[3])
    return sight.causal and indices and square and wide and _heads_are_known(q, k) and _single(q)


def group_query(
    e: Emitter, sight: Sight, value: ir.Value, sinks: ir.Value | None, scale: float, softcap: float
) -> ir.Value:
    """Causality and window are the operator's own; padding and an explicit mask are its bias."""
    q, k = e.fake(sight.query), e.fake(sight.key)
    heads, kv_heads = int(q.shape[1]), int(k.shape[1])
    total, last = _lengths(e, q.shape[0], q.shape[2])
    added = None if sight.tokens.everything else _full_bias(e, sight.tokens)
    output, _, _ = e.ops_out(
        "GroupQueryAttention", 3,
        *(heads_as_width(e, x) for x in (sight.query, sight.key, value)),
        None, None, last, total, None, None, None, added, *(() if sinks is None else (e.cast(sinks, q.dtype),)),
        domain=MICROSOFT, num_heads=heads, kv_num_heads=kv_heads, scale=scale,
        local_window_size=sight.window if sight.window > 0 else None,
        softcap=softcap if softcap > 0 else None,
    )  # fmt: skip
    return _finished(e, sight, output)


def _lengths(e: Emitter, batch: int | torch.SymInt, tokens: int | torch.SymInt) -> tuple[ir.Value, ir.Value]:
    """The number of keys (0-D int32), and each row's last key (int32 ``[batch]``): every row is full."""

    def total() -> ir.Value:
        return e.op("Cast", e.sizes.scalar(tokens), to=int(ir.DataType.INT32))

    def last() -> ir.Value:
        before = e.op("Sub", e.shared_value(("total", key), total), e.const(1, torch.int32))
        return e.op("Expand", before, e.shape([batch]))

    key = (expression(batch), expression(tokens))
    return e.shared_value(("total", key), total), e.shared_value(("last", key), last)


def takes_multi_head(
    e: Emitter, sight: Sight, value: ir.Value, sinks: ir.Value | None, softcap: float
) -> bool:
    """Whether ``MultiHeadAttention`` fits: as many key heads as query heads, no cap and no sinks, in float32."""
    q, k, v = e.fake(sight.query), e.fake(sight.key), e.fake(value)
    same = same_size(q.shape[1], k.shape[1]) and same_size(k.shape[3], v.shape[3])
    return same and sinks is None and softcap <= 0 and _heads_are_known(q, k) and _single(q)


def multi_head(e: Emitter, sight: Sight, value: ir.Value, scale: float) -> ir.Value:
    """A bias of keys is one more column of them, padding alone the key padding mask, everything else a bias."""
    q = e.fake(sight.query)
    heads = int(q.shape[1])
    padding = added = None
    whole = sight
    column, sight = split_key_bias(e, sight)
    if column is None:
        query, key = heads_as_width(e, sight.query), heads_as_width(e, sight.key)
    else:
        order = [0, 2, 1, 3]
        wide = with_one(e, tokens_before_heads(e, sight.query), q, order)
        keys = with_bias(e, tokens_before_heads(e, sight.key), column, e.fake(sight.key), order, 1.0 / scale)
        query, key = (e.op("Reshape", x, e.ints([0, 0, heads * (int(q.shape[3]) + 1)])) for x in (wide, keys))
    if sight.padding is not None and sight.mask is None and not sight.causal and sight.window <= 0:
        padding = _key_padding(e, sight.padding)
    elif not sight.everything:
        added = _full_bias(e, sight)
    output = e.op(
        "MultiHeadAttention",
        query, key, heads_as_width(e, value), None, padding, added,
        domain=MICROSOFT, num_heads=heads, scale=scale,
        mask_filter_value=None if sight.everything else torch.finfo(torch.float32).min,
    )  # fmt: skip
    return _finished(e, whole, output)


def _finished(e: Emitter, sight: Sight, output: ir.Value) -> ir.Value:
    """What an operator returned, ``[batch, queries, heads * d]``, as ``[batch, heads, queries, d]``."""
    batch, heads, queries, width = e.fake(sight.query).shape
    sizes = [batch, queries, heads, width]
    if same_for_heads(e, sight):
        return split_heads(e, zero_blind_tokens(e, sight, output), sizes)
    return zero_blind(e, sight, split_heads(e, output, sizes))


def _key_padding(e: Emitter, padding: ir.Value) -> ir.Value:
    return e.shared_value(
        ("key_padding", id(padding)), lambda: e.cast(e.cast(padding, torch.bool), torch.int32)
    )


def _full_bias(e: Emitter, sight: Sight) -> ir.Value:
    """The bias with its query dim written out, which both operators ask for."""
    value = bias(e, sight, torch.float32)
    q, k = e.fake(sight.query).shape[2], e.fake(sight.key).shape[2]
    return e.shared_value(("full_bias", id(value)), lambda: e.op("Expand", value, e.shape([1, 1, q, k])))


def _heads_are_known(*operands: torch.Tensor) -> bool:
    """Whether both inner sizes are numbers: the operators have them as attributes.

    What attends within windows may have as many of these as it likes where heads usually are.
    """
    return all(isinstance(operand.shape[dim], int) for operand in operands for dim in (1, 3))


def _single(q: torch.Tensor) -> bool:
    return q.dtype == torch.float32
