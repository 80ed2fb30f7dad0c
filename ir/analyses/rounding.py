"""How exact each output is: the coarsest dtype that its content is computed in, whatever dtype it is returned in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..program import Program
from ..same_elements import COPIES, MOVES
from ..views import is_view
from .layers import content_flow

aten = torch.ops.aten

# Largest difference that reordered sums may leave, relative to the largest magnitude of what differs.
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# The result holds entries of the operands as they are.
_TAKES = {
    aten.embedding, aten.index, aten.index_select, aten.gather, aten.take_along_dim, aten.cat, aten.stack,
}  # fmt: skip


def rounding_allowances(program: Program) -> dict[str, float]:
    """By output name, how far values may be apart for rounding alone, relative to the largest; 0 for whole numbers."""
    return {name: ROUNDING.get(dtype, 0.0) for name, dtype in coarsest_dtypes(program).items()}


def coarsest_dtypes(program: Program) -> dict[str, torch.dtype]:
    """By output name, the coarsest dtype among its own and those that its content was computed in.

    What is only held in a dtype is exact: a table in half precision whose rows are cast at once, or an input that is.
    Masks, indices and shapes steer and are no content, nor is anything that neither a weight nor an input in floating
    point has a part in, such as a mask made of whole numbers.
    """
    found = program.analysis(_computed_in)
    results: Any = program.output_node.args[0]
    return {
        spec.name: _coarsest({spec.dtype, found.get(node) or spec.dtype})
        for spec, node in zip(program.outputs, results, strict=True)
    }


def _computed_in(program: Program) -> dict[fx.Node, torch.dtype | None]:
    """The coarsest dtype that each value in floating point was rounded in; None where it is exact.

    A value that neither a weight nor an input in floating point has a part in is left out.
    """
    flow = content_flow(program)
    found: dict[fx.Node, torch.dtype | None] = {}
    for node in program.graph.nodes:
        own = _floating(node.meta.get("val"))
        if own is None:
            continue
        if node.op in ("placeholder", "get_attr"):
            found[node] = None
            continue
        sources = [found[source] for source in flow.predecessors(node) if source in found]
        rounded = {dtype for dtype in sources if dtype is not None}
        # Two kernels whose results differ by little may be rounded to neighbours by a cast.
        if rounded or (sources and not _keeps_entries(node)):
            found[node] = _coarsest({own, *rounded})
        elif sources:
            found[node] = None
    return found


def _floating(value: Any) -> torch.dtype | None:
    """The coarsest dtype in floating point of a value, of its parts where it is complex; None where it has none."""
    values = value if isinstance(value, tuple | list) else [value]
    dtypes = {
        v.dtype.to_real()
        for v in values
        if isinstance(v, Tensor) and (v.is_floating_point() or v.is_complex())
    }
    return _coarsest(dtypes) if dtypes else None


def _coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    return max(dtypes, key=lambda dtype: ROUNDING.get(dtype, 0.0))


def _keeps_entries(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet in _TAKES or packet in (*COPIES, *MOVES) or is_view(node)
