"""How far positions may count: what they are looked up in has only so many rows."""

from __future__ import annotations

import torch

from ..evaluate import evaluate, sources_of
from ..program import Program
from ..stepping import Stepping

aten = torch.ops.aten


def most_positions(program: Program, stepping: Stepping) -> int | None:
    """How many tokens a row may have before one's position is no row of an embedding; None where nothing bounds them.

    A model may count on before it looks up (OPT begins at 2 and has the mask say which tokens count): for real tokens
    the rows are computed as the graph does, one position after another.
    """
    bounds = []
    for node in program.graph.nodes:
        if node.target is not aten.embedding.default:
            continue
        rows, index = node.args[0].meta["val"].shape[0], node.args[1]
        asked = {n.target for n in sources_of([index]) if n.op == "placeholder"}
        # What depends on anything else is none that positions alone bound.
        if stepping.positions not in asked or not asked <= {stepping.positions, stepping.padding}:
            continue
        positions = torch.arange(2 * rows)[None]
        given = {stepping.positions: positions}
        if stepping.padding is not None:
            dtype = next(spec.dtype for spec in program.inputs if spec.name == stepping.padding)
            given[stepping.padding] = torch.ones(positions.shape, dtype=dtype)
        found = evaluate(program, [index], given)[index].reshape(-1)
        outside = ((found < 0) | (found >= rows)).nonzero()
        if len(outside):
            bounds.append(int(outside[0]))
    return min(bounds, default=None)
