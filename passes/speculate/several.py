"""Several drafters at once: of what they guess together, a tree, the part is checked that promises most.

All are asked at every step, also while guessing rests: looking up costs next to nothing beside a step, and what is seen
of guesses that are not checked is what ends the rest.  What rests is checking (``runtime.speculation.Policy``).  Models
that guess take steps of their own, so that they rest altogether, each drafter by its own account (``draft_loop``).
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from tersor.ir.drafting import GREEDILY, NO_ROWS, Draft, Drafting, DraftModel, Outlook, Rows
from tersor.ir.program import Program

from ..option_types import value_of
from ..registry import find_methods
from .drafter import Drafter

# No drafter tells more kinds of guesses apart.
_KINDS = 1000


@dataclass(frozen=True)
class Several(Drafter):
    """Ask several drafters, and check what promises most of all that they guess."""

    name: ClassVar[str] = "several"

    of: tuple[str, ...] = field(
        default=("suffix", "recycle"), metadata={"help": "which, each at its defaults"}
    )
    given: tuple[str, ...] = field(
        default=(), metadata={"help": "options of single ones, as in ppd.prompts:FILE+recycle.candidates:8"}
    )

    def __post_init__(self) -> None:
        known = find_methods(Drafter)
        for name in self.of:
            if name not in known or name == self.name:
                others = ", ".join(sorted(set(known) - {self.name}))
                raise ValueError(f"of={'+'.join(self.of)}: {name!r} is none of the drafters {others}")
        if not self.of:
            raise ValueError("of names no drafter")
        twice = next((name for name in self.of if self.of.count(name) > 1), None)
        if twice:
            raise ValueError(
                f"of={'+'.join(self.of)} names {twice!r} twice: a drafter guesses the same each time"
            )
        options: dict[str, dict[str, Any]] = {name: {} for name in self.of}
        for text in self.given:
            name, option, value = _parts(text)
            if name not in options:
                raise ValueError(f"given={text}: of={'+'.join(self.of)} names no {name!r}")
            if option in options[name]:
                raise ValueError(f"given={'+'.join(self.given)} says {name}.{option} twice")
            options[name][option] = _value(known[name], text, option, value)
        made = {name: known[name](**options[name]) for name in self.of}
        object.__setattr__(self, "_drafters", list(made.values()))
        object.__setattr__(self, "given", tuple(_settled(text, made) for text in self.given))

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


def _parts(text: str) -> tuple[str, str, str]:
    """Drafter, option and value of ``drafter.option:value``."""
    name, dot, rest = text.partition(".")
    option, colon, value = rest.partition(":")
    if not dot or not colon:
        raise ValueError(f"given={text}: write drafter.option:value, several joined by +")
    return name, option, value


def _settled(text: str, made: Mapping[str, Drafter]) -> str:
    """``text`` with a name of a file or folder as the drafter has settled it."""
    name, option, _ = _parts(text)
    value = getattr(made[name], option)
    return f"{name}.{option}:{value}" if isinstance(value, str) else text


def _value(kind: type[Drafter], text: str, option: str, value: str) -> Any:
    hints = {field.name: typing.get_type_hints(kind)[field.name] for field in fields(kind)}
    if option not in hints:
        known = ", ".join(hints) or "none"
        raise ValueError(f"given={text}: {kind.name} has no option {option!r}; it has {known}")
    try:
        return value_of(hints[option], value)
    except ValueError as error:
        raise ValueError(f"given={text}: {option} is {error}") from None


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
            _of(number, chain)
            for number, drafting in enumerate(self._draftings)
            for chain in drafting.draft(most, _Outlook(number, outlook))
        ]


def _of(number: int, draft: Draft) -> Draft:
    """A draft of one drafter, whose kinds are told from those of the others."""
    return replace(draft, kinds=[number * _KINDS + kind for kind in draft.kinds])


@dataclass(frozen=True)
class _Outlook(Outlook):
    """What one drafter is told, which knows of its own kinds of guesses alone."""

    number: int
    all: Outlook

    @property
    def plain(self) -> float:
        return self.all.plain

    def choose(self, ahead: Sequence[int], logits: Tensor) -> int:
        return self.all.choose(ahead, logits)

    def noisy(self, ahead: int, tokens: Sequence[int], scores: Sequence[float]) -> list[float]:
        return self.all.noisy(ahead, tokens, scores)

    def worth(self, draft: Draft, seconds: float) -> bool:
        return self.all.worth(_of(self.number, draft), seconds)
