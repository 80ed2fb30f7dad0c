"""The table of our own lowerings, by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Lowering = Callable[..., Any]
F = TypeVar("F", bound=Lowering)

LOWERINGS: dict[Any, Lowering] = {}


def lowers(*targets: Any) -> Callable[[F], F]:
    """Register the decorated function for ATen or dialect overloads (or plain functions) in FX nodes.

    It is called as ``lowering(emitter, *args, **kwargs)`` with the node's own arguments: tensors as ``ir.Value``,
    sizes as int or SymInt, everything else as it is.  It returns one value, a tuple of values where the operator
    returns several, or ``NotImplemented`` to leave this call to the exporter's table.

    Raises:
        ValueError: the operator has a lowering already.
    """

    def register(function: F) -> F:
        for target in targets:
            if target in LOWERINGS:
                raise ValueError(f"{target} is lowered by {LOWERINGS[target].__name__} already")
            LOWERINGS[target] = function
        return function

    return register
