"""A Program run by PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tersor.codegen.target import Executable
from tersor.ir.archive import GRAPH_FILE
from tersor.ir.archive import load as load_program
from tersor.ir.archive import save as save_program
from tersor.ir.errors import ArtifactError
from tersor.ir.program import Program, TensorSpec

SETTINGS = "torch.json"


class TorchExecutable(Executable):
    """Runs ``program.module()``, through ``torch.compile`` when ``compiled``."""

    def __init__(self, program: Program, *, compiled: bool = False) -> None:
        self.program = program
        self.compiled = compiled
        module = program.module()
        self._call: Callable[..., Any] = torch.compile(module, dynamic=True) if compiled else module

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.program.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.program.outputs

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(self._call(*(inputs[spec.name] for spec in self.inputs)))

    def save(self, folder: Path) -> None:
        # The artifact's own copy of the Program, where the front door has written it already, serves as ours.
        if not (folder / GRAPH_FILE).exists():
            save_program(self.program, folder)
        (folder / SETTINGS).write_text(json.dumps({"compile": self.compiled}))

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        path = folder / SETTINGS
        try:
            settings = json.loads(path.read_text())
            compiled = bool(settings["compile"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is missing or damaged ({error}); save the artifact again") from error
        return cls(load_program(folder), compiled=bool(options.get("compile", compiled)))
