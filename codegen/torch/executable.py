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
from tersor.codegen.target import Executable, memory
from tersor.ir.archive import GRAPH_FILE
from tersor.ir.archive import load as load_program
from tersor.ir.archive import save as save_program
from tersor.ir.dialect import DIALECT, dialect_of, is_dialect
from tersor.ir.errors import ArtifactError
from tersor.ir.operands import arguments
from tersor.ir.program import Program, TensorSpec

SETTINGS = "torch.json"


class TorchExecutable(Executable):
    """Runs ``program.module()`` on the device that inputs are on, through ``torch.compile`` when ``compiled``."""

    def __init__(self, program: Program, *, compiled: bool = False) -> None:
        self.program = program
        self.compiled = compiled
        self._domains = input_domains(program)
        # By device, and whether states are written in place; made when there are such inputs.
        self._calls: dict[tuple[torch.device, bool], Callable[..., Any]] = {}

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
        return self._computed(inputs, False)

    def compute_into(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What :meth:`run_into` does; states are written where they lie, if they are given back to that place."""
        stepping = self.program.stepping
        states = [] if stepping is None else [state for slots in stepping.slots for state in slots.states]
        back = into.keys() == {state.result for state in states} and all(
            memory(into[state.result]) == memory(inputs[state.name]) for state in states
        )
        if not back or self.compiled:
            return super().compute_into(inputs, into)
        results = self._computed(inputs, True)
        moved = {
            spec.name: into[spec.name]
            for spec, result in zip(self.outputs, results, strict=True)
            if spec.name in into and memory(result) != memory(into[spec.name])
        }
        return self._copied(results, moved)

    def _computed(self, inputs: Mapping[str, Tensor], in_place: bool) -> tuple[Tensor, ...]:
        given = [inputs[spec.name] for spec in self.inputs]
        key = (given[0].device if given else torch.device("cpu"), in_place)
        if key not in self._calls:
            module = placed(self.program, key[0])
            if in_place:
                _write_in_place(module)
            self._calls[key] = _compiled(module) if self.compiled else module
        with torch.no_grad():
            return tuple(self._calls[key](*given))

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


def _write_in_place(module: fx.GraphModule) -> None:
    """Let what returns states write over those it was given: inputs of the graph that only the dialect reads."""
    for node in module.graph.nodes:
        op = dialect_of(node)
        if op is None or op.in_place is None:
            continue
        given = arguments(node)
        states = [given[name] for name in op.in_place.states]
        if all(state.op == "placeholder" and all(map(is_dialect, state.users)) for state in states):
            node.target = op.in_place.function
    module.recompile()


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
