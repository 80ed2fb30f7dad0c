"""Another model guesses: a smaller one over the same vocabulary (Leviathan et al. 2023), or parts of it.

Of a model that was trained to be cut short there are nested ones, each the first layers of the next: S2D (Kavehzadeh et
al. 2024) drafts with the one that suits the text, here the one that gave most tokens a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tersor.ir import archive
from tersor.ir.drafting import DraftModel
from tersor.ir.errors import InputError
from tersor.ir.fewer_layers import fewer_layers
from tersor.ir.program import Program
from tersor.ir.straight import straight

from .draft_loop import ModelDrafter, check_exits

_WHOLE = "whole"


@dataclass(frozen=True)
class SecondModel(ModelDrafter):
    """Guess what another model says, which keeps a cache of its own."""

    name: ClassVar[str] = "model"
    reported: ClassVar[str] = "2 to 3x, T5-XXL"

    path: str = field(
        default="",
        metadata={
            "help": "folder, which stays there, of one converted with kv-cache; by default the model itself"
        },
    )
    exits: tuple[int, ...] = field(
        default=(), metadata={"help": "cut after how many layers, one or several; whole by default"}
    )

    def __post_init__(self) -> None:
        check_exits(self.exits)
        object.__setattr__(self, "path", settled(self.path))

    def models(self, program: Program) -> Mapping[str, DraftModel]:
        whole = load_draft(self.path, program) if self.path else program
        if not self.exits:
            return {_WHOLE: DraftModel(whole, _WHOLE)}
        # Each has a cache of its own: a deeper one lacks what a shallower one leaves out.
        return {str(layer): DraftModel(fewer_layers(whole, range(layer)), str(layer)) for layer in self.exits}


def settled(path: str) -> str:
    """``path`` by a name that holds everywhere: what needs it may be run in another folder than it was made in."""
    return path and str(Path(path).absolute())


def load_draft(path: str, program: Program) -> Program:
    """The Program in the folder ``path``, which is to guess what ``program`` says.

    Raises:
        InputError: there is none, or it keeps no cache, or its vocabulary is another.
        ArtifactError: it is damaged.
    """
    if not (Path(path) / archive.GRAPH_FILE).is_file():
        raise InputError(
            f"there is no model in {path!r} to guess with: give a folder that `tersor convert` wrote; an artifact "
            "that guesses so does not hold it, and needs it where it was"
        )
    draft = archive.load(path)
    if draft.stepping is None:
        raise InputError(f"the model in {path!r} keeps no cache: convert it with -p kv-cache")
    sizes = [one.returned[0].shape[-1] for one in (draft, program)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the model in {path!r} has a vocabulary of {sizes[0]} tokens, and this one of {sizes[1]}: "
            "what guesses must have the same"
        )
    return straight(draft)
