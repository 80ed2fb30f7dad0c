"""Values that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program

from ..contract import Site
from .part import Part


@dataclass(frozen=True)
class DeadCode(Part):
    """Remove values that nothing reads, and the weights that only they read."""

    name: ClassVar[str] = "dead-code"

    def legality(self, program: Program) -> list[Site]:
        dead: set[str] = set()
        for node in reversed(program.graph.nodes):
            if node.op in ("call_function", "get_attr") and all(user.name in dead for user in node.users):
                dead.add(node.name)
        ordered = (node for node in program.graph.nodes if node.name in dead)
        return [Site(node.name, node.meta.get("layer") or "") for node in ordered]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        chosen = {site.node for site in sites}
        for node in reversed(work.graph.nodes):
            if node.name in chosen and not node.users:
                work.graph.erase_node(node)
        work.drop_unread_weights()
        return work
