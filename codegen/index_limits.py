"""What integer inputs may hold, read off the graph: numbers of rows of embedding tables."""

from __future__ import annotations

import torch
from torch import fx

from tersor.ir.program import Program

aten = torch.ops.aten
_SAME_ELEMENTS = {
    *(aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.clone.default),
    *(aten.alias.default, aten.contiguous.default, aten.detach.default, aten.lift_fresh_copy.default),
    *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints),
    *(aten.expand.default, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.transpose.int, aten.permute.default, aten.t.default),
}


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
        table, source = node.args[0], node.args[1]
        while isinstance(source, fx.Node) and source.target in _SAME_ELEMENTS:
            source = source.args[0]
        rows = table.meta["val"].shape[0]
        if source in names and isinstance(rows, int):
            name = names[source]
            limits[name] = min(rows, limits.get(name, rows))
    return limits
