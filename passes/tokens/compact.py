"""Leave per-token outputs compact, and return which tokens they are of."""

from __future__ import annotations

from typing import Any

from torch import fx

from tersor.ir.analyses.token_axis import TokenAxis
from tersor.ir.boundary import spec_of
from tersor.ir.builder import Builder
from tersor.ir.inference import infer_shapes
from tersor.ir.program import Program
from tersor.ir.structure import Structure

from ..contract import KEPT_INDEX
from ..fewer_tokens import reduce_along
from .rewrite import Cut


def leave_compact(program: Program, cut: Cut, axis: TokenAxis, full: fx.Node) -> None:
    """Undo the restoration past the last block and add the output ``kept_index``; changes ``program`` in place.

    Args:
        axis: where tokens go from ``cut.end`` to the outputs, as ``token_axis_to_outputs`` proved it.
        full: the stream before the first site.
    """
    restored, end, index = cut.restored, cut.end, cut.index
    assert restored is not None
    assert index is not None
    restored.replace_all_uses_with(end)
    start = end.next
    g = Builder(program, start, str(end.meta.get("layer", "")))
    reduce_along(g, axis, full, index, cut.token_dim)
    output = program.output_node
    results: list[fx.Node] = list(output.args[0])  # type: ignore[arg-type]
    names = [spec.name for spec in program.outputs]
    if KEPT_INDEX in names:
        # An earlier pass left the outputs compact: its index is of what this pass chose from.
        place = names.index(KEPT_INDEX)
        with g.at(output):
            results[place] = g.op("gather_tokens", results[place], index, 1)
    else:
        results.append(index)
        program.structure = with_leaf(program.structure, KEPT_INDEX)
    output.args = (tuple(results),)
    infer_shapes(program, start=start)
    program.outputs = tuple(
        spec_of(node, name, program.symbols)
        for node, name in zip(results, program.structure.names(), strict=True)
    )


def with_leaf(structure: Structure, name: str) -> Structure:
    """``structure`` with one more tensor at its top level.

    A dict stays one; anything else becomes fields that are read by name or by place, because a model's own output
    class has no such field.
    """
    leaf = Structure("tensor")
    if structure.kind == "dict":
        return Structure("dict", (*structure.children, leaf), (*structure.keys, name))
    if structure.kind in ("object", "namedtuple"):
        return Structure("object", (*structure.children, leaf), (*structure.keys, name))
    children: tuple[Structure, ...] = structure.children
    if structure.kind == "tensor":
        return Structure("object", (structure, leaf), ("output", name))
    labels: Any = (f"output_{i}" for i in range(len(children)))
    return Structure("object", (*children, leaf), (*labels, name))
