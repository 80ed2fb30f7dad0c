"""Names of the inputs' dimensions, put right by what attention does with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..boundary import spec_of
from ..dialect import is_dialect
from ..program import Program
from ..shapes import expression
from .dims import BATCH

TOKENS = "tokens"


def named_by_attention(program: Program) -> Program:
    """``program`` with ``batch`` and ``tokens`` swapped where every attention attends along the dim called batch.

    The names were given by place, batch first; a model that takes ``[tokens, batch, features]`` shows it here.
    """
    rows, columns = set(), set()
    for node in program.graph.nodes:
        if is_dialect(node, "attention"):
            shape = node.args[0].meta["val"].shape
            rows.add(_name(program, shape[0]))
            columns.add(_name(program, shape[2]))
    if columns != {BATCH} or not rows <= {TOKENS, None}:
        return program
    swap = {BATCH: TOKENS, TOKENS: BATCH}
    symbols = {symbol: swap.get(name, name) for symbol, name in program.symbols.items()}
    ends = {str(node.target): node for node in program.graph.nodes if node.op == "placeholder"}
    results: Any = program.output_node.args[0]
    return replace(
        program,
        symbols=symbols,
        ranges={swap.get(name, name): limits for name, limits in program.ranges.items()},
        inputs=tuple(spec_of(ends[spec.name], spec.name, symbols) for spec in program.inputs),
        outputs=tuple(
            spec_of(node, spec.name, symbols) for node, spec in zip(results, program.outputs, strict=True)
        ),
    )


def _name(program: Program, size: Any) -> str | None:
    """The name of a size that is one symbol; None for a number or for anything computed."""
    return program.symbols.get(str(expression(size)))
