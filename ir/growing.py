"""A Program that is run in steps, whose states hold the earlier tokens and have no room for more."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .boundary import describe_outputs, remove_input
from .builder import Builder
from .dialect import is_dialect
from .operands import arguments
from .program import Program

aten = torch.ops.aten


def growing(program: Program) -> Program:
    """``program`` with states that are as long as the tokens they hold, and come back longer by the new ones.

    Where states are handed from step to step by value, slots that are not filled would be copied for nothing.  A state
    of a windowed layer may be given without its oldest tokens, but for those that the first new one still sees.

    Returns:
        a Program without the inputs that count filled slots, and without ``stepping``, which would not drive it.

    Raises:
        ValueError: ``program`` is not run in steps, its steps take trees (see ``straight``), or its rows share pages
            (see ``unpaged``).
    """
    stepping = program.stepping
    if stepping is None or stepping.branches is not None:
        raise ValueError("only a Program whose steps take rows of tokens has states that can grow")
    if any(slots.pages is not None for slots in stepping.slots):
        raise ValueError("only a Program whose rows have slots of their own has states that can grow")
    work = program.edit()
    places: dict[fx.Node, fx.Node] = {}
    for node in list(work.graph.nodes):
        if is_dialect(node, "cached_attention"):
            values = arguments(node)
            g = Builder(work, node, str(node.meta.get("layer", "")))
            if values["past_length"] not in places:
                places[values["past_length"]] = _places(g, values)
            _grow(g, node, values, places[values["past_length"]])
    for slots in stepping.slots:
        remove_input(work, slots.length)
    work.stepping = None
    describe_outputs(work)
    return work.finished()


def _places(g: Builder, values: dict[str, Any]) -> fx.Node:
    """Where the new tokens stand among the keys of a layer: int64 ``[1, new]``."""
    before, new = g.size(values["past_key"], 2), g.size(values["key"], 2)
    end = g.call(operator.add, before, new)
    return g.call(aten.unsqueeze.default, g.call(aten.arange.start, before, end), 0)


def _grow(g: Builder, node: fx.Node, values: dict[str, Any], places: fx.Node) -> None:
    key, value = (
        g.call(aten.cat.default, [values[f"past_{what}"], values[what]], 2) for what in ("key", "value")
    )
    output = g.op(
        "attention", values["query"], key, value, None, None, places, None, values["sinks"],
        scale=values["scale"], causal=True, window=values["window"], softcap=values["softcap"],
    )  # fmt: skip
    results = (output, key, value)
    for item in list(node.users):
        item.replace_all_uses_with(results[item.args[1]])  # type: ignore[index]
        g.program.graph.erase_node(item)
    g.program.graph.erase_node(node)
