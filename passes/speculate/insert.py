"""``speculate``: let a drafter guess tokens ahead; the model checks them, so that the tokens stay its own.

The new tokens of a step become a tree of guesses (tree attention as in SpecInfer, Miao et al. 2024): each sees its
ancestors, and is where it would be if they had been the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from tersor.ir.boundary import add_input, input_node
from tersor.ir.dialect import is_dialect
from tersor.ir.errors import RefusedError
from tersor.ir.operands import set_operand
from tersor.ir.program import Program
from tersor.ir.stepping import Branches

from ..contract import Pass, Promise, Refusal, Site
from ..spec import Spec
from .drafter import Drafter
from .several import Several

NOTE = "speculate"


@dataclass(frozen=True)
class Speculate(Pass):
    """Guess tokens ahead and check several in one step; the tokens stay those of the model."""

    name: ClassVar[str] = "speculate"
    family: ClassVar[str] = "speculate"
    promise: ClassVar[Promise] = Promise.GREEDY_EXACT
    # What is faster for it is generation, not a run over whole rows.
    must_pay: ClassVar[bool] = False

    drafter: Drafter = field(default_factory=Several, metadata={"help": "who guesses"})

    def legality(self, program: Program) -> list[Site] | Refusal:
        if program.stepping is None:
            return Refusal(
                "nothing is kept between steps, so that none can check guesses: put kv-cache before it"
            )
        if NOTE in program.notes:
            return Refusal(f"{program.notes[NOTE]} guesses already")
        try:
            self.drafter.models(program)
            self._branching(program)
        except RefusedError as error:
            return Refusal(str(error))
        # All attention takes trees or none does, for which the output stands.
        return [Site(program.output_node.name)]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = self._branching(program)
        work.notes[NOTE] = str(Spec.of(self))
        return work.finished()

    def _branching(self, program: Program) -> Program:
        """A Program whose steps take trees, and what the drafter wants of them."""
        work = program.edit()
        assert work.stepping is not None
        batch, tokens = input_node(work, work.stepping.ids).meta["val"].shape
        depth = add_input(work, "depth", (batch, tokens), torch.int64)
        ancestors = add_input(work, "ancestors", (batch, tokens, tokens), torch.bool)
        for node in work.graph.nodes:
            if not is_dialect(node, "cached_attention"):
                continue
            set_operand(node, "depth", depth)
            set_operand(node, "ancestors", ancestors)
        work.stepping = replace(work.stepping, branches=Branches(str(depth.target), str(ancestors.target)))
        return self.drafter.prepared(work)
