"""The table of fusions, by the operator that is the last of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from torch import fx

from ..emitter import Emitter

# Of an FX node whose operands are lowered already, the value of any node before it.
Values = Callable[[fx.Node], ir.Value]
Fusion = Callable[[Emitter, fx.Node, Values], ir.Value | None]

FUSIONS: dict[Any, list[Fusion]] = defaultdict(list)


def fuses(*targets: Any) -> Callable[[Fusion], Fusion]:
    """Register the decorated function for nodes of these overloads; it returns None for those that end no such form."""

    def register(function: Fusion) -> Fusion:
        for target in targets:
            FUSIONS[target].append(function)
        return function

    return register
