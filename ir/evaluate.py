"""Part of a graph, run for the values of some of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .program import Program


def sources_of(wanted: Iterable[fx.Node]) -> set[fx.Node]:
    """All that the values of ``wanted`` are computed from, themselves included."""
    frontier = list(wanted)
    needed = set(frontier)
    while frontier:
        for source in frontier.pop().all_input_nodes:
            if source not in needed:
                needed.add(source)
                frontier.append(source)
    return needed


def evaluate(program: Program, wanted: Iterable[fx.Node], inputs: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
    """Values of ``wanted``, computed with all that they need and nothing else.

    Args:
        inputs: every input that they are computed from, by name.

    Raises:
        KeyError: such an input is not given.
    """
    wanted = set(wanted)
    needed = sources_of(wanted)
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node not in needed:
                continue
            if node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
            else:
                values[node] = (inputs if node.op == "placeholder" else program.weights)[node.target]
    return {node: values[node] for node in wanted}
