"""A Program run by PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx

from tersor.codegen.input_domains import InputDomain, input_domains
from tersor.codegen.placed import placed
from tersor.codegen.target import Executable
from tersor.ir.archive import GRAPH_FILE
from tersor.ir.archive import load as load_program
from tersor.ir.archive import save as save_program
from tersor.ir.dialect import DIALECT, is_dialect
from tersor.ir.errors import ArtifactError
from tersor.ir.program import Program, TensorSpec

SETTINGS = "torch.json"


class TorchExecutable(Executable):
    """Runs ``program.module()`` on the device that inputs are on, through ``torch.compile`` when ``compiled``."""

    def __init__(self, program: Program, *, compiled: bool = False) -> None:
        self.program = program
        self.compiled = compiled
        self._domains = input_domains(program)
        # By device, and made when there are inputs on it.
        self._calls: dict[torch.device, Callable[..., Any]] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.program.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.program.outputs

    @property
    def domains(self) -> tuple[InputDomain, ...]:
        return self._domains

    @property
    def device(self) -> None:
        return None

    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        given = [inputs[spec.name] for spec in self.inputs]
        device = given[0].device if given else torch.device("cpu")
        if device not in self._calls:
            module = placed(self.program, device)
            self._calls[device] = _compiled(module) if self.compiled else module
        with torch.no_grad():
            return tuple(self._calls[device](*given))

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


def _compiled(module: fx.GraphModule) -> Callable[..., Any]:
    """``torch.compile`` over the module, with the dialect's operators spelled out by their references.

    To the compiler a custom operator is a wall, whose result must have the very strides of its shape function;
    the reference lets it see, and fuse, what is behind.
    """
    for node in module.graph.nodes:
        if is_dialect(node):
            node.target = DIALECT[node.target._opname].reference
    module.recompile()
    return torch.compile(module, dynamic=True)
