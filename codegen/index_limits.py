"""What integer inputs may hold, read off the graph: numbers of rows of embedding tables."""

from __future__ import annotations

import torch

from tersor.ir.program import Program
from tersor.ir.same_elements import origin

aten = torch.ops.aten


def index_limits(program: Program) -> dict[str, int]:
    """For every input all of whose elements number rows of embedding tables: the fewest rows of any such table."""
    names = {
        node: spec.name
        for node, spec in zip(
            (n for n in program.graph.nodes if n.op == "placeholder"), program.inputs, strict=True
        )
    }
    limits: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.target is not aten.embedding.default:
            continue
        table, source = node.args[0], origin(node.args[1])
        rows = table.meta["val"].shape[0]
        if source in names and isinstance(rows, int):
            name = names[source]
            limits[name] = min(rows, limits.get(name, rows))
    return limits
