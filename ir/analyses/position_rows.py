"""How far positions may count: what they are looked up in has only so many rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..evaluate import evaluate, sources_of
from ..program import Program
from ..stepping import Stepping

aten = torch.ops.aten


def most_positions(program: Program, stepping: Stepping) -> int | None:
    """How many tokens a row may have before one's position is no row of a table; None where nothing bounds them.

    A model may count on before it looks up (OPT begins at 2 and has the mask say which tokens count): for real tokens
    the rows are computed as the graph does, one position after another.
    """
    bounds = []
    for node in program.graph.nodes:
        lookup = _looked_up(node)
        if lookup is None:
            continue
        rows, index = lookup
        asked = {n.target for n in sources_of([index]) if n.op == "placeholder"}
        # What depends on anything else is none that positions alone bound.
        if stepping.positions not in asked or not asked <= {stepping.positions, stepping.padding}:
            continue
        # Of no more than other tables have rows for, which come first where one is looked up by another.
        positions = torch.arange(min([2 * rows, *bounds]))[None]
        given = {stepping.positions: positions}
        if stepping.padding is not None:
            dtype = next(spec.dtype for spec in program.inputs if spec.name == stepping.padding)
            given[stepping.padding] = torch.ones(positions.shape, dtype=dtype)
        # Of one text, a position has one number, or a run of them.
        numbers = evaluate(program, [index], given)[index].reshape(positions.shape[1], -1)
        outside = ((numbers < 0) | (numbers >= rows)).any(1).nonzero()
        if len(outside):
            bounds.append(int(outside[0]))
    return min(bounds, default=None)


def _looked_up(node: fx.Node) -> tuple[int, Any] | None:
    """How many rows a table has that ``node`` looks rows up in, and the node of their numbers."""
    packet = getattr(node.target, "overloadpacket", None)
    table: Any = node.args[0] if node.args else None
    if packet is aten.embedding:
        dim, index = 0, node.args[1]
    elif packet in (aten.index_select, aten.gather):
        dim, index = int(node.args[1]), node.args[2]  # type: ignore[arg-type]
    elif packet is aten.index:
        ((dim, index), *others) = [(d, n) for d, n in enumerate(node.args[1]) if n is not None]  # type: ignore[arg-type]
        if others:
            return None
    else:
        return None
    rows = table.meta["val"].shape[dim]
    return (rows, index) if isinstance(rows, int) else None
