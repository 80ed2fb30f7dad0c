"""The attention family: ``softmax(QK^T)V`` written out, keys and values never repeated for grouped queries.

With ``ops="ort"`` plain attention goes to ONNX Runtime's own operators instead, see :mod:`..microsoft`.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from tersor.ir.dialect import DIALECT
from tersor.ir.shapes import same_size

from .. import microsoft
from ..emitter import Emitter
from ..key_bias import split_key_bias, with_bias, with_one
from ..masks import Sight, bias, sighted, zero_blind
from ..peephole import transposed
from ..registry import lowers


@lowers(DIALECT["attention"].overload)
def attention(
    e: Emitter,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    mask: ir.Value | None = None,
    padding: ir.Value | None = None,
    query_positions: ir.Value | None = None,
    key_positions: ir.Value | None = None,
    sinks: ir.Value | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
) -> ir.Value:
    sight = Sight.of(e, query, key, mask, padding, query_positions, key_positions, causal, window)
    if e.ops == "ort":
        if microsoft.takes_group_query(e, sight, value):
            e.choose("GroupQueryAttention")
            return microsoft.group_query(e, sight, value, sinks, scale, softcap)
        if microsoft.takes_multi_head(e, sight, value, sinks, softcap):
            e.choose("MultiHeadAttention")
            return microsoft.multi_head(e, sight, value, scale)
    e.choose("MatMul and Softmax")
    rows = probabilities(e, sight, sinks, scale, softcap)
    return zero_blind(e, sight, times_values(e, rows, query, value))


@lowers(DIALECT["attention_importance"].overload)
def attention_importance(
    e: Emitter,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    query_weights: ir.Value,
    mask: ir.Value | None = None,
    padding: ir.Value | None = None,
    query_positions: ir.Value | None = None,
    key_positions: ir.Value | None = None,
    sinks: ir.Value | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    iterations: int = 1,
) -> tuple[ir.Value, ir.Value]:
    """The probabilities are computed once, for the output and for every iteration of the importance."""
    sight = Sight.of(e, query, key, mask, padding, query_positions, key_positions, causal, window)
    rows = probabilities(e, sight, sinks, scale, softcap)
    output = zero_blind(e, sight, times_values(e, rows, query, value))
    rows = e.cast(_known(rows, e.fake(query).dtype), torch.float32)
    weights = e.op("Expand", e.cast(query_weights, torch.float32), e.shape(e.fake(query).shape[:3]))
    importance = e.op("Unsqueeze", weights, e.ints([2]))
    seeing = sighted(e, sight, torch.float32)
    if seeing is not None:
        # Blind queries weigh nothing: zeroing them here costs a row, zeroing their probabilities a matrix.
        seeing = e.op("Transpose", seeing, perm=[0, 1, 3, 2])
    for _ in range(iterations):
        weighted = importance if seeing is None else e.op("Mul", importance, seeing)
        importance = e.op("MatMul", weighted, rows)
    return output, e.op("Squeeze", importance, e.ints([2]))


@lowers(DIALECT["attention_weights"].overload)
def attention_weights(
    e: Emitter,
    query: ir.Value,
    key: ir.Value,
    mask: ir.Value | None = None,
    padding: ir.Value | None = None,
    query_positions: ir.Value | None = None,
    key_positions: ir.Value | None = None,
    sinks: ir.Value | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
) -> ir.Value:
    sight = Sight.of(e, query, key, mask, padding, query_positions, key_positions, causal, window)
    return zero_blind(e, sight, probabilities(e, sight, sinks, scale, softcap))


def probabilities(e: Emitter, sight: Sight, sinks: ir.Value | None, scale: float, softcap: float) -> ir.Value:
    """Softmax rows ``[batch, heads, queries, keys]``; the row of a query that sees nothing is uniform."""
    q, k = e.fake(sight.query), e.fake(sight.key)
    dtype = q.dtype
    scaled = e.op("Mul", sight.query, e.const(scale, dtype))
    columns = transposed(e, sight.key, [0, 1, 3, 2])
    if same_size(q.shape[1], k.shape[1]):
        added, rest = (None, sight) if softcap > 0 else split_key_bias(e, sight)
        if added is not None:
            scaled, sight = with_one(e, scaled, q, [0, 1, 2, 3]), rest
            columns = with_bias(e, columns, added, k, [0, 1, 3, 2])
        logits = e.op("MatMul", scaled, columns)
    else:
        logits = _ungroup(e, e.op("MatMul", _group(e, scaled, q, k), columns), q, k.shape[2])
    if softcap > 0:
        cap = e.const(softcap, dtype)
        logits = e.op("Mul", e.op("Tanh", e.op("Div", logits, cap)), cap)
    if not sight.everything:
        logits = e.op("Add", logits, bias(e, sight, dtype))
    if sinks is not None:
        column = e.op("Reshape", e.cast(sinks, dtype), e.ints([1, -1, 1, 1]))
        column = e.op("Expand", column, e.shape([q.shape[0], 1, q.shape[2], 1]))
        logits = e.op("Concat", logits, column, axis=3)
    half = dtype.itemsize < 4
    if half:
        logits = e.op("Cast", logits, to=int(ir.DataType.FLOAT))
    rows = e.op("Softmax", logits, axis=-1)
    if sinks is not None:
        rows = e.op("Slice", rows, e.ints([0]), e.ints([-1]), e.ints([3]))
    return e.op("Cast", rows, to=int(ir.tensor_adapters.from_torch_dtype(dtype))) if half else rows


def times_values(e: Emitter, rows: ir.Value, query: ir.Value, value: ir.Value) -> ir.Value:
    q, v = e.fake(query), e.fake(value)
    if same_size(q.shape[1], v.shape[1]):
        return e.op("MatMul", rows, value)
    grouped = e.op("Reshape", rows, e.shape([0, int(v.shape[1]), -1, v.shape[2]]))
    return _ungroup(e, e.op("MatMul", grouped, value), q, v.shape[3])


def _group(e: Emitter, query: ir.Value, q: torch.Tensor, k: torch.Tensor) -> ir.Value:
    """``[batch, heads, queries, d]`` with the queries of a group of heads behind each other."""
    return e.op("Reshape", query, e.ints([0, int(k.shape[1]), -1, int(q.shape[3])]))


def _ungroup(e: Emitter, x: ir.Value, q: torch.Tensor, width: int | torch.SymInt) -> ir.Value:
    """Back to one row per head and query; what is symbolic last is left to -1, else the queries are."""
    if isinstance(width, int):
        return e.op("Reshape", x, e.ints([0, int(q.shape[1]), -1, width]))
    return e.op("Reshape", x, e.shape([0, int(q.shape[1]), q.shape[2], -1]))


def _known(x: ir.Value, dtype: torch.dtype) -> ir.Value:
    x.type = ir.TensorType(ir.tensor_adapters.from_torch_dtype(dtype))
    return x
