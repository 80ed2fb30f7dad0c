"""A Program that is run in steps and also gives the queries of its attention."""

from __future__ import annotations

from torch import fx

from .boundary import add_output
from .dialect import is_dialect
from .operands import arguments
from .program import Program

_SUFFIX = ".query"


def show_queries(program: Program) -> Program:
    """``program`` with one more output for every cached attention: its queries ``[batch, heads, tokens, head_dim]``.

    It is called as :func:`query_name` says.
    """
    work = program.edit()
    for node in list(work.graph.nodes):
        if is_dialect(node, "cached_attention"):
            values = arguments(node)
            add_output(work, values["query"], query_name(_state(values["past_key"])))
    return work.finished()


def _state(past: fx.Node) -> str:
    """The state that earlier keys are, or are read from."""
    return str((arguments(past)["pool"] if is_dialect(past, "read_pages") else past).target)


def query_name(state: str) -> str:
    """The output with the queries that are compared with the keys of a state."""
    return state + _SUFFIX
