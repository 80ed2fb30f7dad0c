"""All clean-up passes, again and again until none finds anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program

from ..blame import blame
from ..contract import Pass, Promise, Site
from ..registry import import_all, named_subclasses
from .part import Part


@dataclass(frozen=True)
class Cleanup(Pass):
    """Run every clean-up pass to a fixed point; the pipeline does so before the first pass and after each one."""

    name: ClassVar[str] = "cleanup"
    family: ClassVar[str] = "cleanup"
    promise: ClassVar[Promise] = Promise.EXACT
    must_pay: ClassVar[bool] = False

    def legality(self, program: Program) -> list[Site]:
        found = {site.node: site for part in parts() for site in _sites(part, program)}
        return [found[node.name] for node in program.graph.nodes if node.name in found]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        growing = [part for part in parts() if part.grows_weights]
        others = [part for part in parts() if not part.grows_weights]
        changed = bool(sites)
        while changed:
            work, changed = _applied(others, work)
            if not changed:
                work, changed = _applied(growing, work)
        return work


def parts() -> list[Part]:
    """Every clean-up pass, with its default options: those of this folder, and those that the program defined."""
    import_all(__name__.rpartition(".")[0])
    return [kind() for kind in named_subclasses(Part).values()]


def _applied(some: list[Part], program: Program) -> tuple[Program, bool]:
    """The Program after each of ``some`` once, and whether any of them found something."""
    changed = False
    for part in some:
        if found := _sites(part, program):
            with blame(part):
                program, changed = part.rewrite(program, found).finished(), True
    return program, changed


def _sites(part: Part, program: Program) -> list[Site]:
    with blame(part):
        return part.legality(program)
