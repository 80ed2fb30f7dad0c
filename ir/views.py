"""Which operators only look at memory that another value owns."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx


def is_view(node: fx.Node) -> bool:
    """Whether computing ``node`` moves no data: its result shares its operand's memory.

    A reshape counts as a view, though after a transpose it copies.
    """
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target is torch.ops.aten.contiguous.default:
        return False
    arguments = target._schema.arguments
    if not arguments or arguments[0].alias_info is None or not isinstance(node.args[0], fx.Node):
        return False
    source, result = node.args[0].meta["val"], node.meta["val"]
    return not isinstance(result, Tensor) or source.dtype == result.dtype
