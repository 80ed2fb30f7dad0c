"""All clean-up passes, again and again until none finds anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program

from ..contract import Pass, Promise, Site
from .common_subexpressions import CommonSubexpressions
from .constant_folding import ConstantFolding
from .dead_code import DeadCode
from .identities import Identities
from .layout import Layout

PARTS: tuple[Pass, ...] = (Identities(), Layout(), CommonSubexpressions(), ConstantFolding(), DeadCode())


@dataclass(frozen=True)
class Cleanup(Pass):
    """Run every clean-up pass to a fixed point; the pipeline does so before the first pass and after each one."""

    name: ClassVar[str] = "cleanup"
    family: ClassVar[str] = "cleanup"
    promise: ClassVar[Promise] = Promise.EXACT

    def legality(self, program: Program) -> list[Site]:
        found = {site.node: site for part in PARTS for site in _sites(part, program)}
        return [found[node.name] for node in program.graph.nodes if node.name in found]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        changed = bool(sites)
        while changed:
            changed = False
            for part in PARTS:
                if found := _sites(part, work):
                    work, changed = part.rewrite(work, found), True
        return work


def _sites(part: Pass, program: Program) -> list[Site]:
    found = part.legality(program)
    # Clean-up is legal everywhere; only where it applies is in question.
    assert isinstance(found, list)
    return found
