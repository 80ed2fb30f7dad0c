"""The Triton target and what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tersor.codegen.input_domains import InputDomain, input_domains
from tersor.codegen.placed import placed
from tersor.codegen.target import Executable, Target
from tersor.ir.archive import load as load_program
from tersor.ir.archive import save as save_program
from tersor.ir.errors import InputError
from tersor.ir.program import Program, TensorSpec

from .call import Fallback
from .devices import execution_device

PROGRAM = "triton-program"


class TritonExecutable(Executable):
    """The Program's graph with kernels in it, on the GPU, or interpreted on the CPU under TRITON_INTERPRET=1.

    Raises:
        LoweringError: kernels cannot run here; the message says what is missing.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._domains = input_domains(program)
        self._device = execution_device()
        from .lower import lower

        self._lowered = lower(program)
        self._module = placed(self._lowered.program, self._device)

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
    def device(self) -> torch.device:
        return self._device

    @property
    def kernels(self) -> tuple[str, ...]:
        """Name of the kernel at every place that has one, in graph order."""
        return tuple(call.kernel.name for call in self._lowered.calls)

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Where and why a reference operator runs in a kernel's place: known from the graph, or met in a run."""
        met = (fallback for call in self._lowered.calls for fallback in call.fallbacks.values())
        return (*self._lowered.fallbacks, *met)

    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(self._module(*(inputs[spec.name] for spec in self.inputs)))

    def save(self, folder: Path) -> None:
        """The Program alone: kernels are compiled and tuned where they run."""
        save_program(self.program, folder / PROGRAM)

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        _refuse(options)
        return cls(load_program(folder / PROGRAM))


class TritonTarget(Target):
    """Fused kernels where the graph has what they stand for; the torch path for the rest."""

    name: ClassVar[str] = "triton"
    executable: ClassVar[type[Executable]] = TritonExecutable

    def lower(self, program: Program) -> TritonExecutable:  # type: ignore[override]
        """The Program with kernels in it; there are no options."""
        return TritonExecutable(program)


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        raise InputError(f"target 'triton' takes no options, given: {', '.join(options)}")
