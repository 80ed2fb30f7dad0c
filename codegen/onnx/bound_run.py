"""Runs that write some of their results into tensors of the caller's, which may be inputs too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tersor.codegen.target import memory
from tersor.ir.program import TensorSpec

from .failures import run_failure
from .session import to_runtime, to_torch


class BoundRun:
    """A session with results bound to tensors.  What is bound stays bound: a run binds only what has changed.

    An operator that can write in place does so where its input and its result are bound to the same memory.
    """

    def __init__(
        self,
        session: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        into: Mapping[str, Tensor],
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs, self._outputs = inputs, outputs
        self._into = dict(into)
        self._given: dict[str, tuple[Any, ...]] = {}
        # The binding does not keep what is bound alive; and memory that is held is given to no other tensor.
        self._held: dict[str, Any] = {}
        self._free = [spec.name for spec in outputs if spec.name not in into]
        # Values come back in the order in which their names were bound first.
        for spec in outputs:
            if spec.name in into:
                self._held[spec.name] = to_runtime(into[spec.name])
                self._binding.bind_ortvalue_output(spec.name, self._held[spec.name])
            else:
                self._binding.bind_output(spec.name, "cpu")

    def serves(self, into: Mapping[str, Tensor]) -> bool:
        """Whether results are bound to the memory of these tensors."""
        return into.keys() == self._into.keys() and all(
            memory(tensor) == memory(self._into[name]) for name, tensor in into.items()
        )

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs in their order; those that are bound are the caller's own tensors.

        Raises:
            ExecutionError: ONNX Runtime fails; the message names the node and the inputs.
        """
        try:
            for spec in self._inputs:
                self._bind(spec.name, inputs[spec.name])
            for name in self._free:
                # Bound again, or a run would write over the results of the last.
                self._binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(self._binding)
            values = self._binding.get_outputs()
        except Exception as error:
            raise run_failure(error, inputs) from error
        return tuple(
            self._into[spec.name] if spec.name in self._into else to_torch(value)
            for spec, value in zip(self._outputs, values, strict=True)
        )

    def _bind(self, name: str, tensor: Tensor) -> None:
        # What is bound is contiguous: a copy of what is not must be the one that is told apart by where it lies.
        tensor = tensor.detach().contiguous()
        place = memory(tensor)
        if self._given.get(name) != place:
            self._given[name] = place
            self._held[name] = to_runtime(tensor)
            self._binding.bind_ortvalue_input(name, self._held[name])
