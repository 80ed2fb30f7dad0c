"""``speculate``: let a drafter guess tokens ahead; the model checks them, so that the tokens stay its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tersor.ir.program import Program

from ..contract import Pass, Promise, Refusal, Site
from ..spec import Spec
from .drafter import Drafter
from .ngram import NGram

NOTE = "speculate"


@dataclass(frozen=True)
class Speculate(Pass):
    """Guess tokens ahead and check several in one step; the tokens stay those of the model."""

    name: ClassVar[str] = "speculate"
    family: ClassVar[str] = "speculate"
    promise: ClassVar[Promise] = Promise.GREEDY_EXACT
    # What is faster for it is generation, not a run over whole rows.
    must_pay: ClassVar[bool] = False

    drafter: Drafter = field(default_factory=NGram, metadata={"help": "who guesses"})

    def legality(self, program: Program) -> list[Site] | Refusal:
        if program.stepping is None:
            return Refusal(
                "nothing is kept between steps, so that none can check guesses: put kv-cache before it"
            )
        if NOTE in program.notes:
            return Refusal(f"{program.notes[NOTE]} guesses already")
        # Guesses concern the whole graph, for which its output stands.
        return [Site(program.output_node.name)]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        """A chain of guesses needs nothing of the graph that a step of several tokens does not have."""
        work = program.edit()
        work.notes[NOTE] = str(Spec.of(self))
        return work.finished()
