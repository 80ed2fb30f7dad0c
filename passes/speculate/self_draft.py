"""Self-drafting: the model's own first layers guess what all of them will say (LayerSkip, Elhoushi et al. 2024).

The early exit shares weights and cache with the model: what its layers wrote of a token is what the model's write again
when it checks.  Several exits are nested models of one, of which the one is used that pays most, as in S2D (Kavehzadeh
et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from tersor.ir.analyses.layers import layers
from tersor.ir.drafting import DraftModel
from tersor.ir.fewer_layers import fewer_layers
from tersor.ir.program import Program

from .draft_loop import ModelDrafter, check_exits


@dataclass(frozen=True)
class SelfDraft(ModelDrafter):
    """Guess what the first layers alone would say, over the same cache."""

    name: ClassVar[str] = "self"
    reported: ClassVar[str] = "1.82 to 2.16x, models trained for it"

    exits: tuple[int, ...] = field(
        default=(), metadata={"help": "after how many layers, one or several; a third of them by default"}
    )

    def __post_init__(self) -> None:
        check_exits(self.exits)

    def models(self, program: Program) -> Mapping[str, DraftModel]:
        count = len(program.analysis(layers))
        exits = self.exits or (max(1, count // 3),)
        return {str(layer): DraftModel(fewer_layers(program, range(layer))) for layer in exits}
