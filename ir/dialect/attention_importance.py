"""Attention that also says how much attention each key received."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ._op import dialect_op
from ._traits import Dim, Role, Traits
from .attention import (
    ATTENDS,
    CONTENT,
    attention_check,
    attention_flops,
    attention_probabilities,
    attention_shape,
    combined_mask,
    visible_keys,
)

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor query_weights, Tensor? mask=None, Tensor? padding=None, "
    "Tensor? query_positions=None, Tensor? key_positions=None, Tensor? sinks=None, *, "
    "float scale, bool causal=False, int window=0, float softcap=0.0, int iterations=1) -> (Tensor, Tensor)"
)
_ATTENDS = replace(
    ATTENDS,
    lines_up={"query_weights": (Dim.BATCH, Dim.OTHER, Dim.QUERIES)},
    harmless=(*ATTENDS.harmless, "iterations"),
    importance_by=None,
)


def _shape(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    importance = query.new_empty(query.shape[0], query.shape[1], key.shape[2], dtype=torch.float32)
    return attention_shape(query, key, value), importance


def _flops(
    query: Tensor, key: Tensor, value: Tensor, *_: object, iterations: int = 1, **__: object
) -> object:
    batch, heads, queries, _ = query.shape
    return attention_flops(query, key, value) + 2 * batch * heads * queries * key.shape[2] * iterations  # type: ignore[operator]


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weights: Tensor,
    *_: object,
    iterations: int = 1,
    **__: object,
) -> str | None:
    if query_weights.dim() != 3:
        return f"query_weights have {query_weights.dim()} dims, expected [batch or 1, heads or 1, queries]"
    if iterations < 1:
        return f"iterations is {iterations}, expected at least 1"
    return attention_check(query, key, value)


@dialect_op(
    "attention_importance",
    SCHEMA,
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=Traits(Role.ATTENDS, CONTENT, attends=_ATTENDS),
)
def attention_importance(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weights: Tensor,
    mask: Tensor | None = None,
    padding: Tensor | None = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    iterations: int = 1,
) -> tuple[Tensor, Tensor]:
    """Attention and, per head, the weighted sum of its probability rows: ``importance = query_weights @ A``.

    With uniform weights that is the attention received (PoWER-BERT); with ``iterations`` t > 1 the result is fed
    back as the weights, ``A^T`` applied t times, which is the power iteration of Zero-TPrune's weighted PageRank.

    Args:
        query_weights: float32, broadcastable to ``[batch, heads, queries]``; 0 for padding.
        The other arguments are those of ``attention``; iterations above 1 need as many keys as queries.

    Returns:
        the output ``[batch, heads, queries, value_dim]`` and the importance, float32 ``[batch, heads, keys]``.
    """
    visible = visible_keys(
        query.shape[2], key.shape[2], query.device, padding, query_positions, key_positions, causal, window
    )
    bias = combined_mask(visible, mask, query.dtype)
    probabilities = attention_probabilities(query, key, bias, sinks, scale, softcap)
    groups = query.shape[1] // key.shape[1]
    output = torch.matmul(probabilities, value.repeat_interleave(groups, dim=1) if groups > 1 else value)
    importance = query_weights.to(torch.float32).expand(query.shape[0], query.shape[1], query.shape[2])
    for _ in range(iterations):
        importance = torch.matmul(importance[:, :, None, :], probabilities.to(torch.float32))[:, :, 0, :]
    return output, importance
