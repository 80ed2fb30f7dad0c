"""Whether a mask of attention hides anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..dialect import traits_of
from ..operands import find_operand

aten = torch.ops.aten
_BOUNDED = (aten.clamp.default, aten.clamp_min.default)
_MOVES = (aten.unsqueeze.default, aten.to.dtype, aten.slice.Tensor, aten.expand.default)


def hides_nothing(mask: fx.Node) -> bool:
    """Whether a mask is proven to lower no logit: the logarithm of what is at least 1, as merging weighs keys.

    A bound of its own says nothing: the logarithm of a padding mask bounded by 1e-9 hides what it is 0 for.
    """
    if not mask.meta["val"].dtype.is_floating_point:
        return False
    source = _entries_of(mask)
    if source is not None:
        return hides_nothing(source)
    if mask.target is aten.add.Tensor and len(mask.all_input_nodes) == 2 and not mask.kwargs:
        return all(map(hides_nothing, mask.all_input_nodes))
    if mask.target is not aten.log.default:
        return False
    least: Any = mask.args[0]
    bound = least.args[1] if least.target in _BOUNDED and len(least.args) > 1 else None
    return isinstance(bound, int | float) and bound >= 1


def _entries_of(node: fx.Node) -> fx.Node | None:
    """The value that ``node`` only takes or repeats entries of, if it does."""
    if node.target in _MOVES:
        return node.args[0]  # type: ignore[return-value]
    traits = traits_of(node)
    return find_operand(node, traits.content[0]) if traits.taken else None
