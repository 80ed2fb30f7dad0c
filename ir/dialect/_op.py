"""How a dialect operator is declared and found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ._traits import PLAIN, Dim, Role, Traits

_LIBRARY = torch.library.Library("tersor", "DEF")


@dataclass(frozen=True)
class InPlace:
    """What a reference does, with the states that it returns written over the operands that they were.

    Attributes:
        states: those operands.  Other operators of the dialect that read them too see nothing of what is written.
    """

    function: Callable[..., Any]
    states: tuple[str, ...]


@dataclass(frozen=True)
class DialectOp:
    """One semantic operator: what it means, what it returns, what it costs.

    Attributes:
        name: name inside the ``tersor`` namespace.
        reference: eager implementation, the definition of the operator's meaning.
        flops: floating-point operations as a function of the operator's own arguments; called with fake
            tensors, so that sizes may be symbolic.
        check: returns why a call is malformed, or None; used by the verifier after every pass.
        traits: what analyses have to know of it.
        in_place: for eager targets whose caller keeps nothing of the states before.
    """

    name: str
    reference: Callable[..., Any]
    flops: Callable[..., Any]
    check: Callable[..., str | None] | None = None
    traits: Traits = PLAIN
    in_place: InPlace | None = None

    @property
    def overload(self) -> torch._ops.OpOverload:
        """The callable that FX nodes carry as ``target``."""
        packet = getattr(torch.ops.tersor, self.name)
        return packet.default  # type: ignore[no-any-return]


DIALECT: dict[str, DialectOp] = {}
# By what nodes carry: every analysis asks this of every node.
_BY_TARGET: dict[Any, DialectOp] = {}


def dialect_op(
    name: str,
    schema: str,
    *,
    shape: Callable[..., Any],
    flops: Callable[..., Any],
    check: Callable[..., str | None] | None = None,
    traits: Traits = PLAIN,
    in_place: InPlace | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated reference as ``tersor::name`` with its shape function, cost, traits and in-place form.

    ``schema`` is the part after the name, for example ``"(Tensor x, Tensor index, int dim) -> Tensor"``.

    Raises:
        ValueError: ``traits`` name an argument that the schema has not, or cannot be those of such an operator.
    """
    arguments = [a.name for a in torch._C.parse_schema(f"tersor::{name}{schema}").arguments]
    if (flaw := _flaw(traits, arguments)) is not None:
        raise ValueError(f"traits of {name} {flaw}")

    def register(reference: Callable[..., Any]) -> Callable[..., Any]:
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
        torch.library.register_fake(f"tersor::{name}", shape, lib=_LIBRARY)
        op = DIALECT[name] = DialectOp(name, reference, flops, check, traits, in_place)
        _BY_TARGET[op.overload] = op
        return reference

    return register


def _flaw(traits: Traits, arguments: list[str]) -> str | None:
    """What is wrong with the traits of an operator that takes ``arguments``, or None."""
    unknown = set(traits.names()) - set(arguments)
    if unknown:
        return f"speak of {', '.join(sorted(unknown))}; it takes no such argument"
    if (traits.role is Role.MOVES or traits.taken) and len(traits.content) != 1:
        return f"name {len(traits.content)} operands as its content, not one"
    if traits.role is Role.ATTENDS and traits.content != tuple(arguments[:3]):
        return "do not name its first three operands, query, key and value, as its content"
    for operand, layout in traits.attends.lines_up.items():
        if not {Dim.QUERIES, Dim.KEYS}.isdisjoint(layout) and layout[0] is not Dim.BATCH:
            return f"line {operand} up with tokens without a batch in front, so that rows could not have their own"
    return None


def dialect_of(node: fx.Node) -> DialectOp | None:
    """The dialect operator that ``node`` calls; None where it calls none."""
    return _BY_TARGET.get(node.target)


def is_dialect(node: fx.Node, *names: str) -> bool:
    """Whether ``node`` calls a dialect operator (one of ``names``, when names are given)."""
    op = _BY_TARGET.get(node.target)
    return op is not None and (not names or op.name in names)


def traits_of(node: fx.Node) -> Traits:
    """What is known of the operator that ``node`` calls; plain where it is none of the dialect's."""
    op = _BY_TARGET.get(node.target)
    return PLAIN if op is None else op.traits
