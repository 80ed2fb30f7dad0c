"""Kept tokens stand in for dropped ones: the proportional attention of ToMe (Bolya et al. 2023) without merging.

Attention is a weighted mean over tokens.  Where the tokens of a large, even part of an image are dropped but for a
few, that part loses its weight in the mean, and every token that attends to it shifts; keys that stand for many
tokens get the weight of all of them back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from tersor.ir.analyses.attention_facts import is_causal, is_windowed, takes
from tersor.ir.builder import Builder

if TYPE_CHECKING:
    from .method import TokenSite

aten = torch.ops.aten
_BELOW_ANY_COSINE = -2.0


def stand_in(g: Builder, site: TokenSite, index: fx.Node) -> fx.Node:
    """How many tokens each kept one stands for, float32 ``[batch, kept]``; the sizes of a row keep their sum.

    A dropped token, with all that it stood for, goes to the unprotected kept token whose key is most like its own
    by cosine (head mean).  Padding stands for nothing.
    """
    size = site.carried.get("size") or site.real(g)
    key = g.mean(site.key, [1])
    length = g.call(aten.linalg_vector_norm.default, key, 2.0, [-1], True)
    unit = g.call(aten.div.Tensor, key, g.at_least(length, 1e-12))
    kept = g.call(aten.transpose.int, g.op("gather_tokens", unit, index, 1), 1, 2)
    others = g.call(aten.logical_not.default, g.op("gather_tokens", _free(g, site), index, 1))
    cosine = g.call(
        aten.masked_fill.Scalar,
        g.call(aten.matmul.default, unit, kept),
        g.call(aten.unsqueeze.default, others, 1),
        _BELOW_ANY_COSINE,
    )
    nearest = g.call(aten.argmax.default, cosine, -1)
    own = g.op("gather_tokens", size, index, 1)
    dropped = g.op("scatter_tokens", size, index, g.call(aten.zeros_like.default, own))
    return g.call(aten.scatter_add.default, own, 1, nearest, dropped)


def log_size(g: Builder, size: fx.Node) -> fx.Node:
    """What to add to the logits of keys that stand for ``size`` tokens each."""
    # A real token stands at least for itself.  Padding has size 0 and is masked anyway; with a bound of 1 the graph
    # shows a later pass that this bias hides nothing.
    return g.call(aten.log.default, g.at_least(size, 1.0))


def _free(g: Builder, site: TokenSite) -> fx.Node:
    """Bool ``[batch, tokens]``: real tokens that nothing protects."""
    real, ordinal = site.real(g), site.ordinals(g)
    count = g.call(aten.to.dtype, g.call(aten.sum.dim_IntList, real, [1], True), torch.int64)
    inside = g.call(
        aten.logical_and.default,
        g.call(aten.ge.Scalar, ordinal, site.prefix),
        g.call(aten.lt.Tensor, ordinal, g.add(count, -site.last)),
    )
    return g.call(aten.logical_and.default, inside, g.call(aten.gt.Scalar, real, 0))


def why_not(attention: fx.Node) -> str | None:
    """Why keys of an attention must not stand for others, or None."""
    if (without := why_no_weights(attention)) is not None:
        return f"proportional=true: {without}"
    if is_causal(attention):
        return "proportional=true: attention is causal, and a key would weigh for tokens that come after it"
    if is_windowed(attention):
        return "proportional=true: attention is windowed, and a key would weigh for tokens outside the window"
    return None


def why_no_weights(attention: fx.Node) -> str | None:
    """Why keys of an attention cannot be given weights, or None."""
    if takes(attention, "mask"):
        return None
    return "attention takes no mask, through which keys weigh for all they stand for; proportional=false does without"
