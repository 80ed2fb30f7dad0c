"""Causal attention of new tokens over those before them, whose keys and values are kept in slots."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import InPlace, dialect_op
from ._traits import Attends, Role, Traits
from .attention import attention, attention_check

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, Tensor past_length, "
    "Tensor? depth=None, Tensor? ancestors=None, Tensor? sinks=None, *, "
    "float scale, int window=0, float softcap=0.0) -> (Tensor, Tensor, Tensor)"
)
TRAITS = Traits(
    Role.ATTENDS,
    ("query", "key", "value"),
    attends=Attends(
        sinks="sinks",
        causal=True,
        window="window",
        # All of them count or name tokens, of which there are others once some are dropped.
        numbers=("past_key", "past_value", "past_length", "depth", "ancestors"),
        harmless=("scale", "softcap"),
    ),
)


def visible_slots(
    new: int,
    capacity: int,
    past_length: Tensor,
    depth: Tensor | None,
    ancestors: Tensor | None,
    window: int,
) -> Tensor:
    """Which slots every new token sees: bool ``[batch, 1, new, capacity]``; see :func:`cached_attention`."""
    past = past_length[:, None]
    slot = torch.arange(capacity, device=past.device)[None]
    index = slot - past  # of a new token among the new ones, from 0
    own = torch.arange(new, device=past.device)[None]
    depth = own if depth is None else depth
    if ancestors is None:
        ancestors = own[:, :, None] >= own[:, None, :]
    batch = past.shape[0]
    held = index.clamp(0, new - 1)
    among = ancestors.expand(batch, new, new).gather(2, held[:, None, :].expand(batch, new, capacity))
    visible = (slot < past)[:, None, :] | (among & ((index >= 0) & (index < new))[:, None, :])
    if window > 0:
        # A new token is where its depth says, which in a tree is not where its slot is.
        place = torch.where(slot < past, slot, past + depth.expand(batch, new).gather(1, held))
        distance = (past + depth)[:, :, None] - place[:, None, :]
        visible = visible & (distance < window)
    return visible[:, None]


def _shape(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, *_: object, **__: object
) -> tuple[Tensor, Tensor, Tensor]:
    output = query.new_empty(query.shape[0], query.shape[1], query.shape[2], value.shape[3])
    return output, torch.empty_like(past_key), torch.empty_like(past_value)


def _flops(query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, *_: object, **__: object) -> object:
    batch, heads, queries, head_dim = query.shape
    return 2 * batch * heads * queries * past_key.shape[2] * (head_dim + value.shape[3])


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_length: Tensor,
    depth: Tensor | None = None,
    ancestors: Tensor | None = None,
    sinks: Tensor | None = None,
    **_: object,
) -> str | None:
    if (flaw := attention_check(query, key, value)) is not None:
        return flaw
    for name, new, past in (("key", key, past_key), ("value", value, past_value)):
        if past.dim() != 4 or past.shape[1] != new.shape[1] or past.shape[3] != new.shape[3]:
            return f"past_{name} {list(past.shape)} does not hold {name}s {list(new.shape)}"
        if past.dtype != new.dtype:
            return f"past_{name} is {past.dtype}, {name} {new.dtype}"
    if past_length.dim() != 1 or past_length.dtype != torch.int64:
        return "past_length is not int64 [batch]"
    if depth is not None and depth.dim() != 2:
        return f"depth has {depth.dim()} dims, expected [batch or 1, new]"
    if ancestors is not None and (ancestors.dim() != 3 or ancestors.dtype != torch.bool):
        return "ancestors is not bool [batch or 1, new, new]"
    return None


def _in_place(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_length: Tensor,
    depth: Tensor | None = None,
    ancestors: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`cached_attention`; new keys and values are put into ``past_key`` and ``past_value`` themselves."""
    new, capacity = key.shape[2], past_key.shape[2]
    slots = past_length[:, None] + torch.arange(new, device=past_length.device)[None]
    if past_length.numel() and new and int(slots.max()) >= capacity:
        raise IndexError(f"{int(slots.max()) + 1} tokens do not fit into {capacity} slots")
    place = slots[:, None, :, None]
    past_key.scatter_(2, place.expand(key.shape), key)
    past_value.scatter_(2, place.expand(value.shape), value)
    visible = visible_slots(new, capacity, past_length, depth, ancestors, window)
    output = attention(query, past_key, past_value, visible, sinks=sinks, scale=scale, softcap=softcap)
    return output, past_key, past_value


@dialect_op(
    "cached_attention",
    SCHEMA,
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=TRAITS,
    in_place=InPlace(_in_place, ("past_key", "past_value")),
)
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_length: Tensor,
    depth: Tensor | None = None,
    ancestors: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of new tokens over the filled slots and each other; their own keys and values go to the next slots.

    New token ``j`` of row ``b`` takes slot ``past_length[b] + j``.  It sees every slot below ``past_length[b]``, and
    of the new tokens its ``ancestors``; of both only those nearer than ``window`` (0: all).  A token in a slot below
    ``past_length[b]`` is at that position, a new one at ``past_length[b] + depth[j]``.  What is in other slots is
    never seen.

    Args:
        query: ``[batch, heads, new, head_dim]``.
        key, value: of the new tokens, ``[batch, kv_heads, new, head_dim]``; ``kv_heads`` divides ``heads``.
        past_key, past_value: ``[batch, kv_heads, slots, head_dim]``.
        past_length: int64 ``[batch]``; with the new tokens no more than there are slots.
        depth: int64 ``[batch or 1, new]``; 0, 1, 2 ... where absent.
        ancestors: bool ``[batch or 1, new, new]``, true where a query (dim 1) sees a new token (dim 2), itself
            included; those before it and itself where absent.
        sinks, scale, softcap: as for ``attention``.

    Returns:
        ``[batch, heads, new, head_dim]``; ``past_key`` and ``past_value`` with the new tokens in their slots.
    """
    return _in_place(
        query, key, value, past_key.clone(), past_value.clone(), past_length, depth, ancestors, sinks,
        scale=scale, window=window, softcap=softcap,
    )  # fmt: skip
