"""What integer inputs may hold, read off the graph: numbers of rows of embedding tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from tersor.ir.errors import InputError
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


def check_limits(inputs: Mapping[str, Tensor], limits: Mapping[str, int]) -> None:
    """See that what ``limits`` names lies between 0 and its limit.

    Torch says which operator failed and not which input, and ONNX takes -1 for the last row without a word.
    Values on another device are left alone: reading them would make every run wait for it.

    Raises:
        InputError: a value is outside; the message names the input, the value, its place and the range.
    """
    for name, limit in limits.items():
        value = inputs[name]
        if value.device.type != "cpu" or value.numel() == 0:
            continue
        low, high = (int(bound) for bound in value.aminmax())
        if low < 0 or high >= limit:
            wrong = low if low < 0 else high
            place = (value == wrong).nonzero()[0].tolist()
            raise InputError(
                f"input {name!r} is {wrong} at {place}; the model takes 0 to {limit - 1} there (rows of an embedding)"
            )
