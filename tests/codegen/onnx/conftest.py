"""Programs of a few nodes, and the comparison of their ONNX form with the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, fx

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.boundary import spec_of
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import SymbolTable
from tersor.ir.structure import Structure

Dims = Mapping[str, Mapping[int, str]]
Build = Callable[..., Any]


class Agree(Protocol):
    def __call__(
        self, build: Build, dims: Dims, *cases: Mapping[str, Tensor], rtol: float = 1e-4
    ) -> None: ...


def small_program(build: Build, dims: Dims, example: Mapping[str, Tensor]) -> Program:
    """The Program whose nodes ``build(builder, *input nodes)`` writes; ``dims`` names the dynamic ones."""
    table, graph = SymbolTable(), fx.Graph()
    nodes = []
    for name, tensor in example.items():
        node = graph.placeholder(name)
        named = dims.get(name, {})
        sizes = [table.symbol(named[d], s) if d in named else s for d, s in enumerate(tensor.shape)]
        node.meta["val"] = table.tensor(sizes, tensor.dtype)
        nodes.append(node)
    end = graph.output(())
    program = Program(
        graph, {}, (), (), Structure("tensor"), table.names, {}, dict(example)
    )  # fmt: skip
    result = build(Builder(program, end), *nodes)
    results = result if isinstance(result, tuple) else (result,)
    end.args = (results,)
    program.inputs = tuple(spec_of(n, n.name, table.names) for n in nodes)
    program.outputs = tuple(spec_of(n, f"out_{i}", table.names) for i, n in enumerate(results))
    program.structure = Structure("tuple", tuple(Structure("tensor") for _ in results))
    return program


def assert_same(expected: tuple[Tensor, ...], actual: tuple[Tensor, ...], rtol: float) -> None:
    for want, have in zip(expected, actual, strict=True):
        assert want.dtype == have.dtype
        if want.dtype.is_floating_point:
            torch.testing.assert_close(have, want, rtol=rtol, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(have, want)


@pytest.fixture
def agree() -> Agree:
    """``agree(build, dims, *cases)``: both op levels equal the torch reference on every case."""

    def check(build: Build, dims: Dims, *cases: Mapping[str, Tensor], rtol: float = 1e-4) -> None:
        program = small_program(build, dims, cases[0])
        for ops in ("portable", "ort"):
            executable = OnnxExecutable.of(program, ops=ops, threads=1)
            for case in cases:
                assert_same(program.run(case), executable.run(case), rtol)

    return check
