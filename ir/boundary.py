"""New inputs, outputs and symbolic dims of a Program that is being edited."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic

from .errors import VerifierError
from .program import Program, TensorSpec
from .shapes import Size, expression, fake_mode, size_text

# Far from sizes that are written into models, and from 0 and 1, which would be taken for fixed.
_HINT = 1021


def new_dim(program: Program, name: str, least: int = 1) -> torch.SymInt:
    """A symbolic size called ``name``, of at least ``least``, for inputs that are yet to be added."""
    if name in program.ranges:
        raise VerifierError(f"the program has a dimension {name!r} already")
    environment = fake_mode(program).shape_env
    assert environment is not None
    source = ConstantSource(f"{name}_{len(environment.var_to_range)}")
    symbol = environment.create_symbol(
        _HINT,
        source,
        dynamic_dim=DimDynamic.DYNAMIC,
        constraint_dim=None,
        do_not_specialize_zero_one=True,
    )
    size = environment.create_symintnode(symbol, hint=_HINT, source=source)
    assert isinstance(size, torch.SymInt)
    program.symbols = program.symbols | {str(symbol): name}
    program.ranges = program.ranges | {name: (least, None)}
    return size


def add_input(program: Program, name: str, sizes: Sequence[Size], dtype: torch.dtype) -> fx.Node:
    """The placeholder of a new last input, called ``name`` or, where there is one, something like it."""
    name = _free(name, program.inputs)
    last = [node for node in program.graph.nodes if node.op == "placeholder"][-1]
    with program.graph.inserting_after(last):
        node = program.graph.placeholder(name)
    node.target = name
    with fake_mode(program):
        node.meta["val"] = torch.empty(tuple(sizes), dtype=dtype)
    program.inputs = (*program.inputs, spec_of(node, name, program.symbols))
    return node


def input_node(program: Program, name: str) -> fx.Node:
    """The placeholder of the input ``name``; KeyError if there is none."""
    node: fx.Node
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.target == name:
            return node
    raise KeyError(name)


def remove_input(program: Program, name: str) -> None:
    """Take away the input ``name``, which nothing reads any more."""
    program.graph.erase_node(input_node(program, name))
    program.inputs = tuple(spec for spec in program.inputs if spec.name != name)


def add_output(program: Program, node: fx.Node, name: str) -> str:
    """Return ``node`` as a new last output; what holds it in the caller's structure is not changed.

    Returns:
        its name: ``name`` or, where there is one, something like it.
    """
    name = _free(name, program.outputs)
    output = program.output_node
    output.args = ((*output.args[0], node),)  # type: ignore[misc]
    program.outputs = (*program.outputs, spec_of(node, name, program.symbols))
    return name


def remove_output(program: Program, name: str) -> None:
    """Return the output ``name`` no longer; what the caller's structure holds does not include it."""
    output, place = program.output_node, [spec.name for spec in program.outputs].index(name)
    results = list(output.args[0])  # type: ignore[arg-type]
    del results[place]
    output.args = (tuple(results),)
    program.outputs = tuple(spec for spec in program.outputs if spec.name != name)


def spec_of(node: fx.Node, name: str, symbols: Mapping[str, str]) -> TensorSpec:
    """The boundary spec of a node, with symbolic sizes under their names."""
    value = node.meta["val"]
    sizes = [(size, expression(size)) for size in value.shape]
    shape = tuple(int(e) if e.is_Integer else size_text(s, symbols) for s, e in sizes)
    return TensorSpec(name, shape, value.dtype)


def describe_outputs(program: Program) -> None:
    """Let the outputs' specs say what their nodes are now."""
    results = program.output_node.args[0]
    program.outputs = tuple(
        spec_of(node, spec.name, program.symbols)
        for node, spec in zip(results, program.outputs, strict=True)  # type: ignore[arg-type]
    )


def _free(name: str, specs: Sequence[TensorSpec]) -> str:
    taken = {spec.name for spec in specs}
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(one for one in (name, *itertools.islice(numbered, len(taken))) if one not in taken)
