"""The contract between the front door and the code generators."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tersor.ir.errors import InputError
from tersor.ir.program import Program, TensorSpec

from .input_domains import InputDomain, check_inputs


class Executable(ABC):
    """A Program in the form that a target runs."""

    @property
    @abstractmethod
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Named inputs in the order of the Program's."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Named outputs in the order of the Program's."""

    @property
    @abstractmethod
    def domains(self) -> tuple[InputDomain, ...]:
        """What numbers the inputs may hold: ``input_domains`` of the Program, also after :meth:`load`."""

    @property
    def device(self) -> torch.device | None:
        """Where :meth:`compute` has its inputs and leaves its results; None for wherever inputs are."""
        return torch.device("cpu")

    @property
    def rounds_activations(self) -> bool:
        """Whether activations are rounded to few bits on the way, which makes much of the order of a sum."""
        return False

    @property
    def chosen(self) -> tuple[str, ...]:
        """Of operators that have several forms in this target, those that were chosen and how often, a line each."""
        return ()

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs as a flat tuple in the order of ``outputs``; ``inputs`` by name, as ``Program.bind`` returns them.

        Inputs may be on any one device; outputs are on it too, wherever they are computed.

        Raises:
            InputError: an input holds a number that the model does not take.
            ExecutionError: what runs the program fails.
        """
        check_inputs(inputs, self.domains)
        home = self._elsewhere(inputs)
        if home is None:
            return self.compute(inputs)
        there = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        # Where inputs were on a GPU, their numbers can be read only now.
        check_inputs(there, self.domains)
        return tuple(result.to(home) for result in self.compute(there))

    def _elsewhere(self, inputs: Mapping[str, Tensor]) -> torch.device | None:
        """The device that inputs are on, where it is not the one to compute on."""
        home = next((tensor.device for tensor in inputs.values()), self.device)
        return None if self.device in (None, home) else home

    @abstractmethod
    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What :meth:`run` returns, for inputs within their domains."""

    def run_into(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What :meth:`run` returns, with the results named in ``into`` written to the tensors given there.

        Such a tensor may be an input too, of the same shape: a state that is kept between runs.
        """
        if self._elsewhere(inputs) is not None:
            return self._copied(self.run(inputs), into)
        check_inputs(inputs, self.domains)
        return self.compute_into(inputs, into)

    def compute_into(self, inputs: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What :meth:`run_into` does, for inputs within their domains; targets that can write in place do so."""
        return self._copied(self.compute(inputs), into)

    def _copied(self, results: Sequence[Tensor], into: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(
            into[spec.name].copy_(result) if spec.name in into else result
            for spec, result in zip(self.outputs, results, strict=True)
        )

    def describe(self, texts: Mapping[str, str]) -> None:  # noqa: B027
        """Texts that the target's own files are to carry, where they can carry any."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write this target's own files into ``folder``, which exists."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        """Read back what :meth:`save` wrote.

        Raises:
            ArtifactError: a file is missing or damaged.
        """


class Target(ABC):
    """One way of running Programs.  A target is a sub-package of ``codegen`` that defines a subclass."""

    name: ClassVar[str]
    executable: ClassVar[type[Executable]]

    def check_options(self, options: Mapping[str, Any]) -> None:  # noqa: B027
        """Raise InputError where options that are each right do not go together, before any work is done."""

    @abstractmethod
    def lower(self, program: Program, **options: Any) -> Executable:
        """Turn ``program`` into something that runs; ``options`` are the target's own.

        Raises:
            LoweringError: an operator has no form in this target; the message names operator, node and layer.
            InputError: an option is unknown or has an unknown value.
        """


def memory(tensor: Tensor) -> tuple[Any, ...]:
    """Where the entries of ``tensor`` lie and how, the same for every tensor over the same of them."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def target_names() -> tuple[str, ...]:
    """Names of all targets in this installation, without importing them."""
    package = importlib.import_module(__package__)
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg))


def find_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    names = target_names()
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"unknown target {name!r}{hint} Targets: {', '.join(names)}")
    module = importlib.import_module(f"{__package__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Target) and getattr(value, "name", None) == name:
            return value()
    raise InputError(f"codegen.{name} defines no Target called {name!r}")
