"""A bias that is the same for all heads and queries, as one more column of keys that queries meet with a one.

Added to the logits it costs a sweep over ``[heads, queries, keys]``, and ``MultiHeadAttention`` wants it written out
for every query; one more column costs as much as one more entry of every head.  `docs/benchmarks.md` (Operators) has
the times of both.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch

from tersor.ir.shapes import expression

from .emitter import Emitter
from .masks import Sight

# As a logit it leaves nothing of a key, yet times a scale's reciprocal it stays finite, as -inf times 0 must be.
_HIDDEN = -1e30


def split_key_bias(e: Emitter, sight: Sight) -> tuple[ir.Value | None, Sight]:
    """The float mask ``[batch or 1, 1, 1, keys]`` of a float32 attention, and what else decides visibility."""
    if sight.mask is None or e.fake(sight.query).dtype != torch.float32:
        return None, sight
    mask = e.fake(sight.mask)
    same_for_all = mask.dim() == 4 and all(isinstance(n, int) and n == 1 for n in mask.shape[1:3])
    if not same_for_all or not mask.dtype.is_floating_point:
        return None, sight
    bias = e.cast(sight.mask, torch.float32)
    if not sight.weighs:
        bias = e.shared_value(
            ("bounded", id(bias)), lambda: e.op("Max", bias, e.const(_HIDDEN, torch.float32))
        )
    return bias, replace(sight, mask=None)


def with_one(e: Emitter, query: ir.Value, fake: torch.Tensor, order: list[int]) -> ir.Value:
    """``query`` with a one behind the last entry of its head dim; ``fake`` and ``order`` as in :func:`with_bias`."""
    sizes = [*fake.shape[:3], 1]

    def column() -> ir.Value:
        return e.op("Expand", e.const(1.0, torch.float32), e.shape([sizes[dim] for dim in order]))

    ones = e.shared_value(("ones", *(expression(sizes[dim]) for dim in order)), column)
    return e.op("Concat", query, ones, axis=order.index(3))


def with_bias(
    e: Emitter, keys: ir.Value, bias: ir.Value, fake: torch.Tensor, order: list[int], factor: float = 1.0
) -> ir.Value:
    """``keys`` with ``bias`` behind the last entry of their head dim.

    Args:
        fake: of the attention's key, ``[batch, heads, keys, head_dim]``.
        order: which of those dims each dim of ``keys`` is.
        factor: what to multiply the bias by: the reciprocal of the scale where all logits are scaled afterwards.
    """

    def column() -> ir.Value:
        scaled = bias if factor == 1.0 else e.op("Mul", bias, e.const(factor, torch.float32))
        lined = e.op("Transpose", scaled, perm=[(0, 1, 3, 2)[dim] for dim in order])
        batch, heads, tokens, _ = fake.shape
        return e.op("Expand", lined, e.shape([(batch, heads, tokens, 1)[dim] for dim in order]))

    key = ("key_bias", id(bias), tuple(map(expression, fake.shape[:3])), tuple(order), factor)
    return e.op("Concat", keys, e.shared_value(key, column), axis=order.index(3))
