"""EasySpec: the draft's layers run several at once on one input (Wu et al. 2025), which an approximation can bear.

What the approximate layers wrote to the cache is put right by a pass over the tokens that were accepted: where the
model drafts for itself, its own check is that pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tersor.ir.drafting import NO_ROWS, Drafting, DraftModel, DraftRow, Rows
from tersor.ir.fewer_layers import parallel_layers
from tersor.ir.program import Program

from .draft_loop import ModelDrafter, ModelDrafting
from .second_model import load_draft, settled

_EXACT, _PARALLEL = "exact", "parallel"


@dataclass(frozen=True)
class EasySpec(ModelDrafter):
    """Guess with runs of layers that all read what the first of them reads."""

    name: ClassVar[str] = "easyspec"
    reported: ClassVar[str] = "up to 4.17x on several GPUs"

    path: str = field(
        default="",
        metadata={"help": "folder of the model that guesses; by default the model guesses for itself"},
    )
    group: int = field(default=2, metadata={"help": "how many layers run at once"})

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"group={self.group}: layers that run at once are 2 or more")
        object.__setattr__(self, "path", settled(self.path))

    def models(self, program: Program) -> Mapping[str, DraftModel]:
        if not self.path:
            return {_PARALLEL: DraftModel(parallel_layers(program, self.group))}
        exact = load_draft(self.path, program)
        return {
            _EXACT: DraftModel(exact, _EXACT),
            _PARALLEL: DraftModel(parallel_layers(exact, self.group), _EXACT),
        }

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        exact = rows.get(_EXACT)
        parallel = rows[_PARALLEL] if exact is None else _Calibrated(exact, rows[_PARALLEL])
        return ModelDrafting({_PARALLEL: parallel}, self._balances)


@dataclass(frozen=True)
class _Calibrated:
    """A row whose every text is read by the exact layers, before the parallel ones go on from there."""

    exact: DraftRow
    parallel: DraftRow

    @property
    def longest(self) -> int | None:
        return self.exact.longest

    @property
    def seconds(self) -> float:
        return self.parallel.seconds

    def unread(self, text: Sequence[int]) -> int:
        return self.exact.unread(text)

    def start(self, text: Sequence[int], most: int, keep: bool = True) -> Tensor:
        # What the parallel layers wrote ahead is read again.
        return self.exact.start(text, most, keep=False)

    def next(self, token: int) -> Tensor:
        return self.parallel.next(token)
