"""Several drafters at once: of what they guess together, a tree, the part is checked that promises most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from tersor.ir.program import Program

from ..registry import find_methods
from .drafter import GREEDILY, NO_ROWS, Draft, Drafter, Drafting, DraftModel, Outlook, Rows

# No drafter tells more kinds of guesses apart.
_KINDS = 1000
_PROMPTED = "ppd"


@dataclass(frozen=True)
class Several(Drafter):
    """Ask several drafters, and check what promises most of all that they guess."""

    name: ClassVar[str] = "several"

    of: tuple[str, ...] = field(
        default=("suffix", "recycle"), metadata={"help": "which, each at its defaults"}
    )
    prompts: str = field(default="", metadata={"help": "of ppd: file that `tersor train-prompts` wrote"})

    def __post_init__(self) -> None:
        known = find_methods(Drafter)  # type: ignore[type-abstract]
        for name in self.of:
            if name not in known or name == self.name:
                others = ", ".join(sorted(set(known) - {self.name}))
                raise ValueError(f"of={'+'.join(self.of)}: {name!r} is none of the drafters {others}")
        if not self.of:
            raise ValueError("of names no drafter")
        if self.prompts and _PROMPTED not in self.of:
            raise ValueError(
                f"prompts={self.prompts} is for {_PROMPTED}, which of={'+'.join(self.of)} does not name"
            )
        # Without them it guesses next to nothing, so that what is a default of others is none of its.
        given = {_PROMPTED: {"prompts": self.prompts}}
        made = [known[name](**given.get(name, {})) for name in self.of]
        object.__setattr__(self, "_drafters", made)

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        drafters: list[Drafter] = self._drafters  # type: ignore[attr-defined]
        return _Side(
            [
                drafter.begin(
                    {name.removeprefix(prefix): row for name, row in rows.items() if name.startswith(prefix)}
                )
                for drafter, prefix in zip(drafters, map(_prefix, self.of), strict=True)
            ]
        )

    def models(self, program: Program) -> Mapping[str, DraftModel]:
        drafters: list[Drafter] = self._drafters  # type: ignore[attr-defined]
        return {
            _prefix(drafter.name) + name: replace(
                model, cache=model.cache and _prefix(drafter.name) + model.cache
            )
            for drafter in drafters
            for name, model in drafter.models(program).items()
        }

    def prepared(self, program: Program) -> Program:
        drafters: list[Drafter] = self._drafters  # type: ignore[attr-defined]
        for drafter in drafters:
            program = drafter.prepared(program)
        return program

    def as_module(self, most: int) -> nn.Module | None:
        """That of the first that has one: a function guesses a chain, and no tree."""
        drafters: list[Drafter] = self._drafters  # type: ignore[attr-defined]
        modules = (drafter.as_module(most) for drafter in drafters)
        return next((module for module in modules if module is not None), None)


def _prefix(drafter: str) -> str:
    return f"{drafter}."


class _Side(Drafting):
    """Drafters side by side on one text."""

    def __init__(self, draftings: list[Drafting]) -> None:
        self._draftings = draftings

    def extend(self, tokens: Sequence[int]) -> None:
        for drafting in self._draftings:
            drafting.extend(tokens)

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:
        for drafting in self._draftings:
            drafting.observe(tokens, logits)

    def probed(self, logits: Tensor) -> None:
        for drafting in self._draftings:
            drafting.probed(logits)

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        return [
            replace(chain, kinds=[number * _KINDS + kind for kind in chain.kinds])
            for number, drafting in enumerate(self._draftings)
            for chain in drafting.draft(most, outlook)
        ]
