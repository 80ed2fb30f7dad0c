"""The torch target's entry."""

from __future__ import annotations

from typing import ClassVar

from tersor.codegen.target import Executable, Target
from tersor.ir.program import Program

from .executable import TorchExecutable


class TorchTarget(Target):
    name: ClassVar[str] = "torch"
    executable: ClassVar[type[Executable]] = TorchExecutable

    def lower(self, program: Program, *, compile: bool = False) -> TorchExecutable:  # type: ignore[override]  # noqa: A002
        """The Program as a module; ``compile=True`` puts ``torch.compile`` over it."""
        return TorchExecutable(program, compiled=compile)
