"""Whether the residual stream is ``[batch, tokens, width]`` or ``[tokens, batch, width]``."""

from __future__ import annotations

from torch import fx

from ..program import Program
from .token_axis import NONE, BatchContext, NotTokenwise, TokenAxis, apply_rule, region_nodes


def token_dim(program: Program, start: fx.Node, query: fx.Node) -> int:
    """The dim of ``start``, a value of the stream, whose entries the attention with this ``query`` compares.

    1 unless dim 0 is seen to become the tokens of ``[batch, heads, tokens, head_dim]`` and dim 1 is not.
    """
    if len(start.meta["val"].shape) != 3:
        return 1
    return 0 if not _is_compared(program, start, query, 1) and _is_compared(program, start, query, 0) else 1


def _is_compared(program: Program, start: fx.Node, query: fx.Node, dim: int) -> bool:
    context = BatchContext(TokenAxis(), start, dim)
    for node in region_nodes(program, start, query):
        try:
            context.found[node] = apply_rule(context, node)
        except NotTokenwise:
            context.found[node] = NONE
    return context.dims(query) == frozenset({2}) and context.fold(query) is None
