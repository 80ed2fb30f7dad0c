"""The structure that clean-up by local rules shares: every site's value is replaced by an equal, cheaper one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from tersor.ir.builder import Builder
from tersor.ir.program import Program

from ..contract import Site
from .part import Part
from .purity import may_replace

Cheaper = fx.Node | Callable[[Builder], fx.Node]


@dataclass(frozen=True)
class Equivalence(Part):
    """Base: a subclass says which value, existing or to be built, equals a node's."""

    @abstractmethod
    def equal_to(self, node: fx.Node) -> Cheaper | None:
        """A node that holds the same value, or how to build one; None when the rule does not apply."""

    def legality(self, program: Program) -> list[Site]:
        sites = []
        for node in program.graph.nodes:
            other = self.equal_to(node) if node.op == "call_function" else None
            if other is not None and (not isinstance(other, fx.Node) or may_replace(node, other)):
                sites.append(Site(node.name, node.meta.get("layer") or ""))
        return sites

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        chosen = {site.node for site in sites}
        for node in list(work.graph.nodes):
            if node.name not in chosen:
                continue
            # An earlier site may have changed what this one reads, so the rule is asked again.
            other = self.equal_to(node)
            if callable(other):
                other = other(Builder(work, node, node.meta.get("layer") or ""))
            if other is None or not may_replace(node, other):
                continue
            node.replace_all_uses_with(other)
            work.graph.erase_node(node)
        return work
