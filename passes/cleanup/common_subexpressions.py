"""The same computation written twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves

from tersor.ir.boundary import describe_outputs
from tersor.ir.inference import infer_shapes, signature
from tersor.ir.program import Program
from tersor.ir.shapes import expression

from ..contract import Site
from .part import Part
from .purity import is_pure, may_replace


@dataclass(frozen=True)
class CommonSubexpressions(Part):
    """Compute equal values once: the same operator on the same operands, the same weight, the same size."""

    name: ClassVar[str] = "common-subexpressions"

    def legality(self, program: Program) -> list[Site]:
        return [Site(node.name, node.meta.get("layer") or "") for node in _twins(program)]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        chosen = {site.node for site in sites}
        renamed = False
        for node, first in _twins(work).items():
            if node.name in chosen:
                renamed |= _symbols(node) != _symbols(first)
                node.replace_all_uses_with(first)
                work.graph.erase_node(node)
        if renamed:
            # What was computed of a size by its other name has it by the first's now.
            infer_shapes(work)
            describe_outputs(work)
        return work


def _symbols(node: fx.Node) -> set[Any]:
    """Of sizes that depend on data, each of which has one of its own wherever it is computed."""
    return {symbol for value in tree_leaves(node.meta["val"]) for symbol in free_unbacked_symbols(value)}


def _twins(program: Program) -> dict[fx.Node, fx.Node]:
    """Every node that repeats an earlier one, with the first of its kind, in graph order."""
    first: dict[Any, fx.Node] = {}
    twins: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if not is_pure(node):
            continue
        original = first.setdefault(_key(node, twins), node)
        if original is not node and may_replace(node, original):
            twins[node] = original
    return twins


def _key(node: fx.Node, twins: Mapping[fx.Node, fx.Node]) -> Any:
    value = node.meta["val"]
    # A size that depends on data is that of the tensor it is read from, whatever symbol it was given.
    if isinstance(value, torch.SymInt) and not free_unbacked_symbols(value):
        return "size", expression(value)
    return node.op, node.target, _named(node.args, twins), _named(node.kwargs, twins)


def _named(value: Any, twins: Mapping[fx.Node, fx.Node]) -> Any:
    """An argument with every node as the name of the first of its kind."""
    return signature(fx.map_arg(value, lambda node: f"%{twins.get(node, node).name}"))
