"""A lowered Program as a part of another graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tersor.ir.program import Program

from ..emitter import Emitter
from ..export import tidy
from ..file import INLINE_BYTES
from ..translate import translate


@dataclass(frozen=True)
class Part:
    """Nodes that belong to no graph yet.

    Attributes:
        inputs, outputs: by the names that they have in the Program.
        weights: initializers that are large.  constants: those that are not, which shape inference reads.
    """

    inputs: Mapping[str, ir.Value]
    outputs: Mapping[str, ir.Value]
    nodes: tuple[ir.Node, ...]
    weights: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]

    @classmethod
    def of(cls, program: Program, prefix: str = "") -> Part:
        """``program`` in standard operators; names of initializers begin with ``prefix``.

        Raises:
            LoweringError: an operator has no ONNX form.
        """
        model = translate(program, "portable")
        tidy(model)
        graph = model.graph
        inputs = {spec.name: value for spec, value in zip(program.inputs, graph.inputs, strict=True)}
        outputs = {spec.name: value for spec, value in zip(program.outputs, graph.outputs, strict=True)}
        nodes, initializers = tuple(graph), tuple(graph.initializers.values())
        # What a graph owns cannot go to another.
        graph.remove(nodes)
        for owned in (graph.inputs, graph.outputs, graph.initializers):
            owned.clear()
        for value in initializers:
            value.name = f"{prefix}{value.name}"
        large = {value for value in initializers if _bytes(value) > INLINE_BYTES}
        return cls(
            inputs,
            outputs,
            nodes,
            tuple(value for value in initializers if value in large),
            tuple(value for value in initializers if value not in large),
        )

    def write(self, e: Emitter, given: Mapping[str, ir.Value]) -> Mapping[str, ir.Value]:
        """Append the nodes, once, reading ``given`` for the inputs; returns the outputs."""
        for name, value in self.inputs.items():
            ir.convenience.replace_all_uses_with(value, given[name])
        e.nodes += self.nodes
        return self.outputs


def _bytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.nbytes
