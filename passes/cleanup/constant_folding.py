"""Values that depend on weights alone, computed once and for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.views import is_view

from ..contract import Site
from .part import Part
from .purity import is_pure


@dataclass(frozen=True)
class ConstantFolding(Part):
    """Replace what weights alone decide by its value, where that makes the model no larger than the limit allows."""

    name: ClassVar[str] = "constant-folding"
    grows_weights: ClassVar[bool] = True

    growth: int = field(
        default=65536, metadata={"help": "bytes that the weights may grow by, all folded values together"}
    )

    def __post_init__(self) -> None:
        if self.growth < 0:
            raise ValueError(f"growth={self.growth} is below 0")

    def legality(self, program: Program) -> list[Site]:
        constant = _constants(program)
        place = {node: i for i, node in enumerate(program.graph.nodes)}
        sites, budget = [], self.growth
        for node in constant:
            if not _is_edge(node, constant):
                continue
            added = _bytes(node) - _freed(program, node, place)
            if added <= budget:
                budget -= max(0, added)
                sites.append(Site(node.name, node.meta.get("layer") or "", {"bytes": added}))
        return sites

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        values: dict[fx.Node, Any] = {}
        for node in (work.find(site.node) for site in sites):
            tensor = _value(work, node, values).contiguous().clone()
            constant = Builder(work, node, node.meta.get("layer") or "").weight(f"folded.{node.name}", tensor)
            node.replace_all_uses_with(constant)
        return work.finished()


def _constants(program: Program) -> dict[fx.Node, None]:
    """Nodes that no input, size or random number decides, in graph order."""
    constant: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        if is_pure(node) and all(source in constant for source in node.all_input_nodes):
            constant[node] = None
    return constant


def _is_edge(node: fx.Node, constant: Iterable[fx.Node]) -> bool:
    """Whether ``node`` is worth folding: it is computed, and something that is not constant reads it."""
    if node.op == "get_attr" or not isinstance(node.meta["val"], Tensor):
        return False
    outside = [user for user in node.users if user not in constant]
    if not outside or any(user.op == "output" for user in outside):
        return False
    # Folding what only looks at a weight would save nothing.
    return not all(source.op == "get_attr" or is_view(source) for source in _cone(node))


def _cone(node: fx.Node) -> list[fx.Node]:
    """``node`` and everything it is computed from, users before their sources."""
    seen: dict[fx.Node, None] = {}

    def visit(current: fx.Node) -> None:
        for source in current.all_input_nodes:
            if source not in seen:
                visit(source)
        seen[current] = None

    visit(node)
    return list(reversed(seen))


def _freed(program: Program, node: fx.Node, place: dict[fx.Node, int]) -> int:
    """Bytes of the weights that nothing but ``node``'s own computation reads."""
    own = {node}
    for source in sorted(_cone(node), key=place.__getitem__, reverse=True):
        if source is not node and all(user in own for user in source.users):
            own.add(source)
    reads = Counter(n.target for n in program.graph.nodes if n.op == "get_attr")
    own_reads = Counter(n.target for n in own if n.op == "get_attr")
    freed = (program.weights[str(name)] for name, count in own_reads.items() if count == reads[name])
    return sum(weight.numel() * weight.element_size() for weight in freed)


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(value.numel()) * int(value.element_size())


def _value(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Tensor:
    with torch.no_grad():
        for current in reversed(_cone(node)):
            if current in values:
                continue
            if current.op == "get_attr":
                values[current] = program.weights[str(current.target)]
            else:
                args, kwargs = fx.map_arg((current.args, current.kwargs), values.__getitem__)
                values[current] = current.target(*args, **kwargs)  # type: ignore[operator]
    return values[node]  # type: ignore[no-any-return]
