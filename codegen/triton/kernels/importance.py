"""``tersor.attention_importance``: attention, then the weighted column sums of its probabilities.

The attention kernel leaves each row's log-sum-exp behind; from it every probability tile can be computed again
on its own, so one program owns a block of keys, walks over the queries and needs neither atomics nor the matrix.
Each further iteration is one more such walk with the last result as the weights.
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
from .attention import run_attention
from .kernel import Kernel, Variant, launcher
from .logits import load_tile, masked_logits
from .operands import FLOAT_ARGUMENTS, OPTIONAL_POINTERS, AttentionOperands, attention_guard, dot_precision

CONFIGS = tuple(
    triton.Config({"BLOCK_M": rows, "BLOCK_N": columns}, num_warps=warps, num_stages=stages)
    for rows, columns, warps, stages in (
        (128, 128, 8, 3),
        (64, 128, 4, 3),
        (64, 64, 4, 3),
        (64, 32, 4, 2),
        (32, 32, 8, 2),
        (64, 16, 4, 2),
    )
)


@triton.jit
def importance_kernel(
    query,
    key,
    mask,
    padding,
    query_positions,
    key_positions,
    row_max,
    row_log_sum,
    weights,
    importance,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_mb,
    stride_mh,
    stride_mm,
    stride_mn,
    stride_pb,
    stride_qpb,
    stride_kpb,
    stride_wb,
    stride_wh,
    stride_wm,
    heads,
    groups,
    queries,
    keys,
    head_dim,
    scale,
    softcap,
    size_class,
    BLOCK_D: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BOOL_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_N keys of one head against every query block that may see them."""
    blocks = tl.cdiv(keys, BLOCK_N)
    head_index = tl.program_id(0) // blocks
    start_n = (tl.program_id(0) % blocks) * BLOCK_N
    batch = (head_index // heads).to(tl.int64)
    head = (head_index % heads).to(tl.int64)
    columns = start_n + tl.arange(0, BLOCK_N)
    if mask is not None:
        mask += batch * stride_mb + head * stride_mh
    if padding is not None:
        padding += batch * stride_pb
    if query_positions is not None:
        query_positions += batch * stride_qpb
    if key_positions is not None:
        key_positions += batch * stride_kpb
    query += batch * stride_qb + head * stride_qh
    weights += batch * stride_wb + head * stride_wh
    row_max += head_index.to(tl.int64) * queries
    row_log_sum += head_index.to(tl.int64) * queries
    k = load_tile(
        key + batch * stride_kb + head // groups * stride_kh, columns, stride_kn, keys, head_dim, BLOCK_D
    )
    received = tl.zeros([BLOCK_N], tl.float32)

    low = 0
    high = queries
    if query_positions is None and key_positions is None:
        if CAUSAL:
            low = start_n // BLOCK_M * BLOCK_M
        elif WINDOW > 0:
            low = tl.maximum(start_n - WINDOW + 1, 0) // BLOCK_M * BLOCK_M
        if WINDOW > 0:
            high = tl.minimum(queries, start_n + BLOCK_N + WINDOW - 1)

    for start_m in range(low, high, BLOCK_M):
        rows = start_m + tl.arange(0, BLOCK_M)
        inside = rows < queries
        q = load_tile(query, rows, stride_qm, queries, head_dim, BLOCK_D)
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
        top = tl.load(row_max + rows, mask=inside, other=0.0)
        log_sum = tl.load(row_log_sum + rows, mask=inside, other=float("inf"))
        probabilities = tl.exp((logits - top[:, None]) - log_sum[:, None])
        weight = tl.load(weights + rows * stride_wm, mask=inside, other=0.0)
        received += tl.sum(probabilities * weight[:, None], 0)

    tl.store(importance + head_index.to(tl.int64) * keys + columns, received, mask=columns < keys)


_launch = launcher(
    importance_kernel,
    CONFIGS,
    key=("BLOCK_D", "CAUSAL", "WINDOW", "size_class"),
    interpreted={"BLOCK_M": 16, "BLOCK_N": 16},
)


def attention_importance(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weights: Tensor,
    *optional: Any,
    iterations: int = 1,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Same arguments and results as ``tersor.attention_importance``."""
    operands = AttentionOperands(query, key, *optional, **options)
    output, row_max, row_log_sum = run_attention(operands, value, statistics=True)
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    importance = query_weights.to(torch.float32).expand(batch, heads, queries)
    arguments = operands.arguments()
    for _ in range(iterations):
        weights, importance = importance, query.new_empty(batch, heads, keys, dtype=torch.float32)
        if importance.numel() > 0:
            _launch(
                lambda meta: (triton.cdiv(keys, meta["BLOCK_N"]) * batch * heads,),
                **arguments,
                row_max=row_max,
                row_log_sum=row_log_sum,
                weights=weights,
                importance=importance,
                **dict(zip(("stride_wb", "stride_wh", "stride_wm"), weights.stride(), strict=True)),
            )
    return output, importance


def importance_guard(
    query: Tensor, key: Tensor, value: Tensor, query_weights: Tensor, *optional: Any, **options: Any
) -> str | None:
    """Why the kernels do not take these operands, or None."""
    return attention_guard(query, key, value, *optional, **options)


def _variant(
    name: str, dtype: str, head_dim: int, config: triton.Config, *present: str, **flags: Any
) -> Variant:
    return Variant(
        name=f"importance {name}",
        kernel=importance_kernel,
        pointers={
            **dict.fromkeys(("query", "key"), dtype),
            **dict.fromkeys(("row_max", "row_log_sum", "weights", "importance"), "fp32"),
            "mask": dtype,
            "padding": "u8",
            **dict.fromkeys(("query_positions", "key_positions"), "i64"),
        },
        constants={
            **dict.fromkeys(p for p in OPTIONAL_POINTERS if p not in (*present, "sinks")),
            "SOFTCAP": False,
            "CAUSAL": False,
            "WINDOW": 0,
            "BOOL_MASK": False,
            **flags,
            "PRECISION": dot_precision(dtype == "fp32"),
            "UPCAST": False,
            "BLOCK_D": head_dim,
        },
        floats=FLOAT_ARGUMENTS,
        aligned=("head_dim", "value_dim"),
        config=config,
    )


KERNEL = Kernel(
    name="attention_importance",
    launch=attention_importance,
    reference=DIALECT["attention_importance"].overload,
    guard=importance_guard,
    match=operator("attention_importance"),
    variants=(
        _variant("fp16, head_dim 64", "fp16", 64, CONFIGS[1]),
        _variant("fp16, head_dim 64, padding", "fp16", 64, CONFIGS[1], "padding"),
        _variant("bf16, head_dim 128, causal", "bf16", 128, CONFIGS[2], CAUSAL=True),
        _variant("fp32, head_dim 64", "fp32", 64, CONFIGS[3]),
        _variant(
            "fp16, head_dim 64, every operand",
            "fp16",
            64,
            CONFIGS[4],
            *OPTIONAL_POINTERS,
            WINDOW=128,
            SOFTCAP=True,
        ),
    ),
)
