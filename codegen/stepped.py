"""A Program that is run in steps, called as the model without a cache is called: whole rows in, whole rows out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from tersor.ir.program import TensorSpec
from tersor.ir.stepping import Stepping, run_in_steps

from .input_domains import InputDomain
from .target import Executable


def called_whole(executable: Executable, stepping: Stepping | None) -> Executable:
    """``executable`` itself, or what drives it where it is run in steps."""
    return executable if stepping is None else Stepped(executable, stepping)


class Stepped(Executable):
    """What is compared with a model, and what a call of an artifact runs; generation drives ``steps`` by itself."""

    def __init__(self, steps: Executable, stepping: Stepping) -> None:
        self.steps, self.stepping = steps, stepping

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.steps.inputs if spec.name not in self.stepping.driven)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.steps.outputs if spec.name not in self.stepping.results)

    @property
    def domains(self) -> tuple[InputDomain, ...]:
        return self.steps.domains

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        # Every step checks what it is given, of which the driver adds a part.
        return self.compute(inputs)

    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return run_in_steps(self.stepping, self.steps.inputs, self.steps.outputs, self.steps.run, inputs)

    @property
    def chosen(self) -> tuple[str, ...]:
        return self.steps.chosen

    def describe(self, texts: Mapping[str, str]) -> None:
        self.steps.describe(texts)

    def save(self, folder: Path) -> None:
        self.steps.save(folder)

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        """Never called: the target's own executable is loaded, and :func:`called_whole` drives it."""
        raise NotImplementedError("load the target's executable and give it to called_whole")
