"""Values that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program

from ..contract import Pass, Promise, Site


@dataclass(frozen=True)
class DeadCode(Pass):
    """Remove values that nothing reads, and the weights that only they read."""

    name: ClassVar[str] = "dead-code"
    family: ClassVar[str] = "cleanup"
    promise: ClassVar[Promise] = Promise.EXACT

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
        drop_unread_weights(work)
        return work


def drop_unread_weights(program: Program) -> None:
    """Forget the weights of ``program``, which is being edited, that no node reads."""
    read = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    program.weights = {name: weight for name, weight in program.weights.items() if name in read}
