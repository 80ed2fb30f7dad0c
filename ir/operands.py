"""Operands of an operator call, by the names and places that its schema gives them."""

from __future__ import annotations

from typing import Any

from torch import fx

# The stop of a slice that has none.
TO_THE_END = 2**63 - 1


def arguments(node: fx.Node) -> dict[str, Any]:
    """Every argument of an operator call by its schema name, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    values = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    values |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return values | dict(node.kwargs)


def argument(node: fx.Node, place: int, default: Any = None) -> Any:
    """The argument at ``place`` of the schema, given by position or by name; ``default`` where it has none there."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get(schema[place].name, default) if place < len(schema) else default


def find_operand(node: fx.Node, name: str) -> fx.Node | None:
    """The tensor operand ``name``; None where it is absent, or the operator has none of that name."""
    value = arguments(node).get(name)
    return value if isinstance(value, fx.Node) else None


def set_operand(node: fx.Node, name: str, value: fx.Node) -> None:
    """Let ``node`` read ``value`` as its operand ``name``.

    Raises:
        ValueError: the operator has none of that name.
    """
    schema = node.target._schema  # type: ignore[union-attr]
    place = [a.name for a in schema.arguments].index(name)
    if place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)
