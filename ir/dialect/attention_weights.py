"""Attention probabilities of a few query rows, without the attention's output."""

from __future__ import annotations

from torch import Tensor

from ._op import dialect_op
from ._traits import CHOICE
from .attention import attention_probabilities, combined_mask, visible_keys

SCHEMA = (
    "(Tensor query, Tensor key, Tensor? mask=None, Tensor? padding=None, Tensor? query_positions=None, "
    "Tensor? key_positions=None, Tensor? sinks=None, *, float scale, bool causal=False, int window=0, "
    "float softcap=0.0) -> Tensor"
)


def _shape(query: Tensor, key: Tensor, *_: object, **__: object) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _flops(query: Tensor, key: Tensor, *_: object, **__: object) -> object:
    batch, heads, queries, head_dim = query.shape
    return 2 * batch * heads * queries * key.shape[2] * head_dim


@dialect_op(
    "attention_weights",
    SCHEMA,
    shape=_shape,
    flops=_flops,
    traits=CHOICE,
)
def attention_weights(
    query: Tensor,
    key: Tensor,
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
    """Softmax rows ``[batch, heads, queries, keys]`` of the given queries; arguments as for ``attention``.

    Meant for one or a few rows (a class token's); ask ``attention_importance`` for sums over all queries.
    """
    visible = visible_keys(
        query.shape[2], key.shape[2], query.device, padding, query_positions, key_positions, causal, window
    )
    bias = combined_mask(visible, mask, query.dtype)
    return attention_probabilities(query, key, bias, sinks, scale, softcap)
