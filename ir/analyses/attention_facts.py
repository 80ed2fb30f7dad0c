"""What the arguments of an attention node mean, whatever its operator calls them.

Analyses and passes ask here; the answers are the traits that the operator's file declares.
"""

from __future__ import annotations

from torch import fx

from .. import operands
from ..dialect import Meaning, dialect_of, traits_of
from ..operands import arguments


def takes(node: fx.Node, meaning: Meaning) -> bool:
    """Whether the operator has an operand of this meaning, given or not."""
    return traits_of(node).attends.operand(meaning) is not None


def operand(node: fx.Node, meaning: Meaning) -> fx.Node | None:
    """The tensor operand of a meaning; None where it is absent, or the operator takes none."""
    name = traits_of(node).attends.operand(meaning)
    return None if name is None else operands.find_operand(node, name)


def set_operand(node: fx.Node, meaning: Meaning, value: fx.Node) -> None:
    """Let ``node``, which ``takes`` such an operand, read ``value`` as the operand of this meaning."""
    name = traits_of(node).attends.operand(meaning)
    assert name is not None
    operands.set_operand(node, name, value)


def is_causal(node: fx.Node) -> bool:
    """Whether keys at later positions are hidden."""
    causal = traits_of(node).attends.causal
    return bool(arguments(node)[causal]) if isinstance(causal, str) else causal


def is_windowed(node: fx.Node) -> bool:
    """Whether keys are hidden by how far from the query they are."""
    window = traits_of(node).attends.window
    return bool(arguments(node)[window] > 0) if isinstance(window, str) else window


def positions_wanted(node: fx.Node, queries: bool, keys: bool) -> tuple[Meaning, ...]:
    """The positions that ``node`` must be given once tokens are missing on these sides, whose index then tells none.

    Order survives where queries and keys lose the same tokens; distance does not.
    """
    if not is_windowed(node) and not (is_causal(node) and queries != keys):
        return ()
    sides: tuple[tuple[Meaning, bool], ...] = (("query_positions", queries), ("key_positions", keys))
    return tuple(meaning for meaning, reduced in sides if reduced)


def undeclared(node: fx.Node) -> str | None:
    """Why nothing may be concluded from an attention node's traits, or None: they leave an argument out."""
    op = dialect_of(node)
    assert op is not None
    left_out = sorted(arguments(node).keys() - set(op.traits.names()))
    if not left_out:
        return None
    return (
        f"the traits of {op.name} do not say what its {' and '.join(left_out)} mean for tokens; declare that where the "
        "operator is defined (Attends in ir/dialect/_traits.py)"
    )
