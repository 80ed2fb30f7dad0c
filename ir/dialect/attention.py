"""Scaled dot-product attention with everything that decides its meaning on one node."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._op import dialect_op
from ._traits import Attends, Role, Traits

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? mask=None, Tensor? padding=None, "
    "Tensor? query_positions=None, Tensor? key_positions=None, Tensor? sinks=None, *, "
    "float scale, bool causal=False, int window=0, float softcap=0.0) -> Tensor"
)
CONTENT = ("query", "key", "value")
ATTENDS = Attends(
    mask="mask",
    padding="padding",
    query_positions="query_positions",
    key_positions="key_positions",
    sinks="sinks",
    causal="causal",
    window="window",
    harmless=("scale", "softcap"),
    rows_by="attention_weights",
    importance_by="attention_importance",
)


def visible_keys(
    queries: int | torch.SymInt,
    keys: int | torch.SymInt,
    device: torch.device,
    padding: Tensor | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    causal: bool,
    window: int,
) -> Tensor | None:
    """Which keys a query may see: bool, broadcastable to ``[batch, heads, queries, keys]``; None when all.

    Query i sees key j when j is not padding, ``position(j) <= position(i)`` if ``causal``, and
    ``|position(i) - position(j)| < window`` if ``window > 0``.
    """
    visible = None if padding is None else padding.bool()[:, None, None, :]
    if causal or window > 0:
        q = torch.arange(queries, device=device)[None] if query_positions is None else query_positions
        k = torch.arange(keys, device=device)[None] if key_positions is None else key_positions
        distance = (q[:, :, None] - k[:, None, :])[:, None]
        if causal:
            visible = distance >= 0 if visible is None else visible & (distance >= 0)
        if window > 0:
            near = distance.abs() < window
            visible = near if visible is None else visible & near
    return visible


def combined_mask(visible: Tensor | None, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Join the visibility (bool) and the explicit mask (bool, or an additive float) as SDPA takes it."""
    if visible is None or mask is None:
        return mask if visible is None else visible
    if mask.dtype == torch.bool:
        return visible & mask
    return torch.where(visible, mask.to(dtype), float("-inf"))


def attention_probabilities(
    query: Tensor, key: Tensor, bias: Tensor | None, sinks: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """Softmax of the scaled, capped and masked logits, ``[batch, heads, queries, keys]``.

    A query that sees no key gets a row of zeros.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
    logits = torch.matmul(query, key.transpose(-1, -2)) * scale
    if softcap > 0:
        logits = torch.tanh(logits / softcap) * softcap
    if bias is not None:
        logits = logits.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else logits + bias
    if sinks is not None:
        column = sinks.to(logits.dtype).reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, column], dim=-1)
    probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = probabilities[..., : key.shape[2]]
    return probabilities if bias is None else torch.nan_to_num(probabilities, nan=0.0)


def attention_shape(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], query.shape[2], value.shape[3])


def attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> object:
    # SDPA, which may have any number of batch dims, is counted by it too.
    queries, head_dim = query.shape[-2:]
    return 2 * math.prod(query.shape[:-2]) * queries * key.shape[-2] * (head_dim + value.shape[-1])


def attention_check(query: Tensor, key: Tensor, value: Tensor, *_: object, **kwargs: object) -> str | None:
    for name, operand in (("query", query), ("key", key), ("value", value)):
        if operand.dim() != 4:
            return f"{name} has {operand.dim()} dims, expected [batch, heads, tokens, head_dim]"
    if query.shape[1] % key.shape[1]:
        return f"{key.shape[1]} key heads do not divide {query.shape[1]} query heads"
    if query.shape[3] != key.shape[3]:
        return f"query head_dim {query.shape[3]} differs from key head_dim {key.shape[3]}"
    return None


@dialect_op(
    "attention",
    SCHEMA,
    shape=attention_shape,
    flops=attention_flops,
    check=attention_check,
    traits=Traits(Role.ATTENDS, CONTENT, attends=ATTENDS),
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
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
) -> Tensor:
    """Attention of ``query [batch, heads, queries, head_dim]`` over grouped keys and values.

    Args:
        key, value: ``[batch, kv_heads, keys, head_dim]``; ``kv_heads`` divides ``heads`` (grouped-query).
        mask: bool (True = visible) or additive float, broadcastable to ``[batch, heads, queries, keys]``.
        padding: bool ``[batch, keys]``, True where a key is a real token.
        query_positions, key_positions: int64 ``[batch or 1, tokens]``; the index where absent.
        sinks: ``[heads]`` extra logits that take part in the softmax and carry no value.
        scale: factor on the logits.  softcap: ``c * tanh(logits / c)`` when above 0, before any mask.
        causal: keys at later positions are hidden.  window: keys at a distance >= window are hidden (0 = off).

    Returns:
        ``[batch, heads, queries, value_dim]``; a query that sees no key yields zeros.
    """
    unmoved = query_positions is None and key_positions is None
    plain_causal = causal and window <= 0 and padding is None and mask is None and unmoved
    bias = None
    if not plain_causal or softcap > 0 or sinks is not None:
        visible = visible_keys(
            query.shape[2],
            key.shape[2],
            query.device,
            padding,
            query_positions,
            key_positions,
            causal,
            window,
        )
        bias = combined_mask(visible, mask, query.dtype)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and bias is not None and sinks is None and query.shape[2] <= key.shape[3]:
        return _by_groups(query, key, value, bias, scale, softcap)
    if groups > 1 and (softcap <= 0 and sinks is None):
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap <= 0 and sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=plain_causal, scale=scale
        )
    probabilities = attention_probabilities(query, key, bias, sinks, scale, softcap)
    return torch.matmul(probabilities, value.repeat_interleave(groups, dim=1) if groups > 1 else value)


def _by_groups(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, softcap: float
) -> Tensor:
    """Attention in which the heads that share keys are queries of one head.

    A few queries with a bias of their own take less than as many copies of all keys and values as there are heads.
    """
    batch, heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    bias = bias[(None,) * (4 - bias.dim())]
    folded = query.reshape(batch, kv_heads, groups * queries, head_dim)
    own = kv_heads if bias.shape[1] > 1 else 1
    spread = bias.expand(-1, own * groups, queries, keys).reshape(-1, own, groups * queries, keys)
    result = attention(folded, key, value, spread, scale=scale, softcap=softcap)
    return result.reshape(batch, heads, queries, value.shape[3])
