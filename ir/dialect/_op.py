"""How a dialect operator is declared and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_LIBRARY = torch.library.Library("tersor", "DEF")


@dataclass(frozen=True)
class DialectOp:
    """One semantic operator: what it means, what it returns, what it costs.

    Attributes:
        name: name inside the ``tersor`` namespace.
        reference: eager implementation, the definition of the operator's meaning.
        flops: floating-point operations as a function of the operator's own arguments; called with fake
            tensors, so that sizes may be symbolic.
        check: returns why a call is malformed, or None; used by the verifier after every pass.
    """

    name: str
    reference: Callable[..., Any]
    flops: Callable[..., Any]
    check: Callable[..., str | None] | None = None

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The callable that FX nodes carry as ``target``."""
        packet = getattr(torch.ops.tersor, self.name)
        return packet.default  # type: ignore[no-any-return]


DIALECT: dict[str, DialectOp] = {}


def dialect_op(
    name: str,
    schema: str,
    *,
    shape: Callable[..., Any],
    flops: Callable[..., Any],
    check: Callable[..., str | None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated reference as ``tersor::name`` with its shape function and cost.

    ``schema`` is the part after the name, for example ``"(Tensor x, Tensor index, int dim) -> Tensor"``.
    """

    def register(reference: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"tersor::{name}", shape, lib=_LIBRARY)
        DIALECT[name] = DialectOp(name, reference, flops, check)
        return reference

    return register


def is_dialect(node: fx.Node, *names: str) -> bool:
    """Whether ``node`` calls a dialect operator (one of ``names``, when names are given)."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return target.namespace == "tersor" and (not names or target._opname in names)
