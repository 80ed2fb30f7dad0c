"""What a model computes of a row as a whole, as of its length or its padding: a cache cannot repeat it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from tersor.ir.analyses.token_axis import Context, NotTokenwise, depends_on_inputs
from tersor.ir.operands import arguments
from tersor.ir.program import Program
from tersor.ir.shapes import Size, expression

from .legality import Decoder

aten = torch.ops.aten
# As schemas call what is no size.
_VALUES = ("number", "float", "Tensor")


def refuse_whole_rows(program: Program, decoder: Decoder, tokens: Context, count: Size) -> None:
    """Refuse numbers made of the token count, and values of the stream's operators that differ with the whole row.

    Raises:
        NotTokenwise: it names the node that reads one.
    """
    symbols = expression(count).free_symbols
    for node in program.graph.nodes:
        # What an arange counts is followed to where it is read.
        if node.op != "call_function" or getattr(node.target, "overloadpacket", None) is aten.arange:
            continue
        if any(expression(size).free_symbols & symbols for size in _numbers(node)):
            raise NotTokenwise(
                node, "computes with the number of tokens, which a cache does not know beforehand"
            )
    sides = {(use.user, use.value) for use in tokens.axis.sides}
    for node in tokens.found:
        if node is decoder.start or node in decoder.attentions:
            continue
        for value in node.all_input_nodes:
            outside = not tokens.inside(value) and (node, value) not in sides
            if outside and isinstance(value.meta.get("val"), Tensor) and (names := depends_on_inputs(value)):
                raise NotTokenwise(
                    node,
                    f"reads {value.name}, computed from the whole of {', '.join(sorted(names))}: a cache sees one "
                    "token after another",
                )


def _numbers(node: fx.Node) -> list[Any]:
    """Sizes that ``node`` takes for numbers to compute with, and not for a shape."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    given = arguments(node)
    kinds = {a.name: str(a.real_type) for a in node.target._schema.arguments}
    values = [value for name, value in given.items() if any(kind in kinds[name] for kind in _VALUES)]
    sizes = (value.meta.get("val") for value in values if isinstance(value, fx.Node))
    return [size for size in sizes if isinstance(size, torch.SymInt | torch.SymFloat)]
