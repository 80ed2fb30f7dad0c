"""A Program for one size of some dimensions: what it computes is the same, and those shapes are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import fx

from .boundary import spec_of
from .inference import inference_of
from .program import Program, TensorSpec
from .shapes import SymbolTable

# Of free dimensions: far from sizes that are written into models.
_HINT = 1021


def fix_sizes(program: Program, sizes: Mapping[str, int]) -> Program:
    """``program`` with every dimension named in ``sizes`` at its size there; the others stay free.

    Shapes that are numbers are inferred many times faster than expressions, and targets may choose by them.

    Raises:
        VerifierError: an operator rejects these sizes; the message names the node.
    """
    fixed = program.edit()
    table = SymbolTable()
    infer = inference_of(table.mode)
    specs = {spec.name: _fixed(spec, sizes) for spec in program.inputs}
    for node in list(fixed.graph.nodes):
        if node.op == "placeholder":
            spec = specs[str(node.target)]
            free = [table.symbol(size, _HINT) if isinstance(size, str) else size for size in spec.shape]
            node.meta["val"] = table.tensor(free, spec.dtype)
        elif node.op == "get_attr":
            node.meta["val"] = table.constant(fixed.weights[str(node.target)])
        elif node.op == "call_function":
            node.meta["val"] = infer(node)
            _replace_by_number(node)
    results = fixed.output_node.args[0]
    outputs = tuple(
        spec_of(result, spec.name, table.names)
        for spec, result in zip(program.outputs, results, strict=True)  # type: ignore[arg-type]
    )
    ranges = {name: bounds for name, bounds in program.ranges.items() if name not in sizes}
    return replace(fixed, inputs=tuple(specs.values()), outputs=outputs, symbols=table.names, ranges=ranges)


def _fixed(spec: TensorSpec, sizes: Mapping[str, int]) -> TensorSpec:
    return replace(spec, shape=tuple(sizes.get(str(dim), dim) for dim in spec.shape))


def replace_numbers(graph: fx.Graph) -> None:
    """Write every size that has become a number into its users' arguments."""
    for node in list(graph.nodes):
        if node.op == "call_function":
            _replace_by_number(node)


def _replace_by_number(node: fx.Node) -> None:
    value = node.meta["val"]
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for user in list(node.users):
        user.args = fx.map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = fx.map_arg(user.kwargs, lambda n: value if n is node else n)
    node.graph.erase_node(node)
