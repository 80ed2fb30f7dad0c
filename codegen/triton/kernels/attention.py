"""``tersor.attention`` as one kernel: online softmax over key blocks, nothing of size queries x keys in memory.

After FlashAttention-2 (Dao, 2023).  Accumulation is in float32 whatever the inputs are.
"""

# Kernels are Triton's language, in which an annotation means something else.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tersor.ir.dialect import DIALECT

from ..match import operator
from .kernel import Kernel, Variant, launcher
from .logits import dot, load_tile, masked_logits
from .operands import (
    FLOAT_ARGUMENTS,
    OPTIONAL_POINTERS,
    AttentionOperands,
    attention_guard,
    block_of,
    dot_precision,
    inner_contiguous,
)

CONFIGS = tuple(
    triton.Config({"BLOCK_M": rows, "BLOCK_N": columns}, num_warps=warps, num_stages=stages)
    for rows, columns, warps, stages in (
        (128, 128, 8, 3),
        (128, 64, 8, 3),
        (128, 64, 4, 3),
        (64, 64, 8, 2),
        (64, 64, 4, 3),
        (64, 32, 4, 2),
        (32, 32, 4, 2),
        (16, 64, 4, 2),
    )
)


@triton.jit
def attention_kernel(
    query,
    key,
    value,
    mask,
    padding,
    query_positions,
    key_positions,
    sinks,
    output,
    row_max,
    row_log_sum,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_ob,
    stride_oh,
    stride_om,
    stride_mb,
    stride_mh,
    stride_mm,
    stride_mn,
    stride_pb,
    stride_qpb,
    stride_kpb,
    heads,
    groups,
    queries,
    keys,
    head_dim,
    value_dim,
    scale,
    softcap,
    size_class,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BOOL_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M queries of one head against every key block that may be visible to them.

    When ``row_max`` is given, the log-sum-exp of every row is stored as ``row_max`` + ``row_log_sum``: in two parts
    because a row hidden by a mask of lowest finite floats would lose the second in the sum.
    """
    blocks = tl.cdiv(queries, BLOCK_M)
    head_index = tl.program_id(0) // blocks
    start_m = (tl.program_id(0) % blocks) * BLOCK_M
    batch = (head_index // heads).to(tl.int64)
    head = (head_index % heads).to(tl.int64)
    kv_head = head // groups
    rows = start_m + tl.arange(0, BLOCK_M)
    if mask is not None:
        mask += batch * stride_mb + head * stride_mh
    if padding is not None:
        padding += batch * stride_pb
    if query_positions is not None:
        query_positions += batch * stride_qpb
    if key_positions is not None:
        key_positions += batch * stride_kpb
    key += batch * stride_kb + kv_head * stride_kh
    value += batch * stride_vb + kv_head * stride_vh
    q = load_tile(query + batch * stride_qb + head * stride_qh, rows, stride_qm, queries, head_dim, BLOCK_D)

    if sinks is not None:
        top = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks + head).to(tl.float32)
        total = tl.full([BLOCK_M], 1.0, tl.float32)
    else:
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    # With positions of their own, tokens may be visible in any block; by index, whole blocks can be passed over.
    low = 0
    high = keys
    if query_positions is None and key_positions is None:
        if CAUSAL:
            high = tl.minimum(keys, start_m + BLOCK_M)
        elif WINDOW > 0:
            high = tl.minimum(keys, start_m + BLOCK_M + WINDOW - 1)
        if WINDOW > 0:
            low = tl.maximum(start_m - WINDOW + 1, 0) // BLOCK_N * BLOCK_N

    for start_n in range(low, high, BLOCK_N):
        columns = start_n + tl.arange(0, BLOCK_N)
        k = load_tile(key, columns, stride_kn, keys, head_dim, BLOCK_D)
        logits = masked_logits(
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
            stride_mm,
            stride_mn,
            scale,
            softcap,
            SOFTCAP,
            CAUSAL,
            WINDOW,
            BOOL_MASK,
            PRECISION,
            UPCAST,
        )
        new_top = tl.maximum(top, tl.max(logits, 1))
        # A row that has seen nothing yet has -inf for its maximum; -inf - -inf must not arise.
        finite_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp(logits - finite_top[:, None])
        rescale = tl.exp(top - finite_top)
        total = total * rescale + tl.sum(weights, 1)
        v = load_tile(value, columns, stride_vn, keys, value_dim, BLOCK_V)
        accumulator = dot(weights.to(v.dtype), v, accumulator * rescale[:, None], PRECISION, UPCAST)
        top = new_top

    seen = total > 0.0
    accumulator = accumulator / tl.where(seen, total, 1.0)[:, None]
    value_columns = tl.arange(0, BLOCK_V)
    at = output + batch * stride_ob + head * stride_oh + rows.to(tl.int64)[:, None] * stride_om
    tl.store(
        at + value_columns[None, :],
        accumulator.to(output.dtype.element_ty),
        mask=(rows < queries)[:, None] & (value_columns < value_dim)[None, :],
    )
    if row_max is not None:
        row = head_index.to(tl.int64) * queries + rows
        # +inf makes every probability of a row that sees nothing exp(-inf) = 0.
        log_sum = tl.where(seen, tl.log(tl.where(seen, total, 1.0)), float("inf"))
        tl.store(row_max + row, tl.where(seen & (top != float("-inf")), top, 0.0), mask=rows < queries)
        tl.store(row_log_sum + row, log_sum, mask=rows < queries)


_launch = launcher(
    attention_kernel,
    CONFIGS,
    key=("BLOCK_D", "BLOCK_V", "CAUSAL", "WINDOW", "size_class"),
    interpreted={"BLOCK_M": 16, "BLOCK_N": 16},
)


def run_attention(
    operands: AttentionOperands, value: Tensor, statistics: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output ``[batch, heads, queries, value_dim]`` and, if asked for, both parts of each row's log-sum-exp."""
    batch, heads, queries, _ = operands.query.shape
    value = inner_contiguous(value)
    # Memory order [batch, queries, heads, value_dim]: heads are joined next, and that costs no copy then.
    output = value.new_empty(batch, queries, heads, value.shape[3]).transpose(1, 2)
    row_max = row_log_sum = None
    if statistics:
        row_max = output.new_empty(batch, heads, queries, dtype=torch.float32)
        row_log_sum = torch.empty_like(row_max)
    if output.numel() > 0:
        _launch(
            lambda meta: (triton.cdiv(queries, meta["BLOCK_M"]) * batch * heads,),
            **operands.arguments(),
            value=value,
            sinks=None if operands.sinks is None else operands.sinks.contiguous(),
            output=output,
            row_max=row_max,
            row_log_sum=row_log_sum,
            **dict(zip(("stride_vb", "stride_vh", "stride_vn"), value.stride(), strict=False)),
            **dict(zip(("stride_ob", "stride_oh", "stride_om"), output.stride(), strict=False)),
            value_dim=value.shape[3],
            BLOCK_V=block_of(value.shape[3]),
        )
    return output, row_max, row_log_sum


def attention(query: Tensor, key: Tensor, value: Tensor, *optional: Any, **options: Any) -> Tensor:
    """Same arguments and result as ``tersor.attention``."""
    return run_attention(AttentionOperands(query, key, *optional, **options), value, statistics=False)[0]


def _variant(
    name: str, dtype: str, head_dim: int, config: triton.Config, *present: str, **flags: Any
) -> Variant:
    statistics = () if "row_max" in present else ("row_max", "row_log_sum")
    return Variant(
        name=f"attention {name}",
        kernel=attention_kernel,
        pointers={
            **dict.fromkeys(("query", "key", "value", "output"), dtype),
            "mask": dtype,
            "padding": "u8",
            **dict.fromkeys(("query_positions", "key_positions"), "i64"),
            "sinks": "fp32",
            "row_max": "fp32",
            "row_log_sum": "fp32",
        },
        constants={
            **dict.fromkeys((*(p for p in OPTIONAL_POINTERS if p not in present), *statistics)),
            "SOFTCAP": False,
            "CAUSAL": False,
            "WINDOW": 0,
            "BOOL_MASK": False,
            **flags,
            "PRECISION": dot_precision(dtype == "fp32"),
            "UPCAST": False,
            "BLOCK_D": head_dim,
            "BLOCK_V": head_dim,
        },
        floats=FLOAT_ARGUMENTS,
        aligned=("head_dim", "value_dim"),
        config=config,
    )


KERNEL = Kernel(
    name="attention",
    launch=attention,
    reference=DIALECT["attention"].overload,
    guard=attention_guard,
    match=operator("attention"),
    variants=(
        _variant("fp16, head_dim 64", "fp16", 64, CONFIGS[2]),
        _variant("fp16, head_dim 64, padding, statistics", "fp16", 64, CONFIGS[2], "padding", "row_max"),
        _variant("bf16, head_dim 128, causal", "bf16", 128, CONFIGS[1], CAUSAL=True),
        _variant(
            "bf16, head_dim 256, window, softcap",
            "bf16",
            256,
            CONFIGS[3],
            CAUSAL=True,
            WINDOW=512,
            SOFTCAP=True,
        ),
        _variant("fp32, head_dim 64", "fp32", 64, CONFIGS[5]),
        _variant(
            "fp16, head_dim 64, every operand",
            "fp16",
            64,
            CONFIGS[6],
            *OPTIONAL_POINTERS,
            WINDOW=128,
            SOFTCAP=True,
        ),
    ),
)
