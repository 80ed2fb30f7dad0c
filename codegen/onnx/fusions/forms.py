"""What fusions look for in FX nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_CASTS = (
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten._to_copy.default,
    aten.type_as.default,
    aten.alias.default,
)


def uncast(node: Any) -> Any:
    """What a node is, through casts that change nothing."""
    while isinstance(node, fx.Node) and node.target in _CASTS:
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.meta["val"].dtype != node.meta["val"].dtype:
            break
        node = source
    return node


def call(node: Any, *targets: Any) -> fx.Node | None:
    """The node, through casts that change nothing, where it calls one of ``targets``."""
    found = uncast(node)
    return found if isinstance(found, fx.Node) and found.target in targets else None


def either_way(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """The two operands of a sum or product, in both orders; none where it scales one of them."""
    if node.kwargs.get("alpha", 1) == 1:
        first, second = node.args[:2]
        yield first, second
        yield second, first


def is_float32(node: fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.dtype == torch.float32
