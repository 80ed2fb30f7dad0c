"""Runs the patterns, in order, over a Program."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..dialect import is_dialect
from ..operands import arguments
from ..program import Program
from ..targets import writes
from ._pattern import Pattern, WhyNot, where
from .complex_numbers import pair_complex_numbers
from .composites import Composite
from .fold_mask import FoldMask
from .grouped_heads import GroupedHeads
from .sdpa import ScaledDotProduct
from .softmax_attention import SoftmaxAttention


def raise_attention(program: Program, padded_rows: bool = False) -> Program:
    """``program`` with its attention as dialect nodes; what stays plain ATen is listed in ``facts.unraised``.

    Args:
        padded_rows: what is computed of padded tokens counts too, so that masks by which it would be something else
            than the model's stay explicit operands.
    """
    edited = pair_complex_numbers(program).edit()
    unraised: list[tuple[str, str]] = []
    # Attention must be one node before its keys and its mask can be looked at.
    patterns: tuple[Pattern[Any], ...] = (
        ScaledDotProduct(edited),
        Composite(edited),
        SoftmaxAttention(edited, padded_rows),
        GroupedHeads(edited),
        FoldMask(edited, padded_rows),
    )
    for pattern in patterns:
        for node in list(edited.graph.nodes):
            if node.op != "call_function" or not pattern.anchor(node):
                continue
            found = pattern.match(node)
            if found is None:
                continue
            why_not = found if isinstance(found, WhyNot) else pattern.apply(node, found)
            if why_not is not None:
                unraised.append((node.name, f"{pattern.name}: {where(why_not.node)}: {why_not.reason}"))
        remove_dead(edited.graph)
    for node in edited.graph.nodes:
        if is_dialect(node, "attention"):
            normalize(node)
    read = {node.target for node in edited.graph.nodes if node.op == "get_attr"}
    edited.weights = {name: weight for name, weight in edited.weights.items() if name in read}
    present = {node.name for node in edited.graph.nodes}
    kept = tuple(entry for entry in unraised if entry[0] in present)
    return edited.with_facts(unraised=program.facts.unraised + kept)


def normalize(node: fx.Node) -> None:
    """Write every argument of a dialect call out, so that equal calls read equal: operands first, then attributes."""
    values = arguments(node)
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    node.args = tuple(values[a.name] for a in schema if not a.kwarg_only)
    node.kwargs = {a.name: values[a.name] for a in schema if a.kwarg_only}


def remove_dead(graph: fx.Graph) -> None:
    """Remove calls and weights that nothing reads; inputs stay."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not writes(node.target):
            graph.erase_node(node)
