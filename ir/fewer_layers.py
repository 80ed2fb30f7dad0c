"""A Program whose steps go through some of its layers only, or through several at once: smaller models inside it."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace

import torch

from .analyses.layers import Layers, layers
from .boundary import remove_input, remove_output
from .builder import Builder
from .errors import RefusedError
from .program import Program

aten = torch.ops.aten


def fewer_layers(program: Program, kept: Collection[int]) -> Program:
    """``program`` with the blocks of its residual stream that ``kept`` numbers; past others the stream goes unchanged.

    The states of blocks that are gone are gone too; those of the others keep their names.

    Raises:
        RefusedError: it has no stack of blocks that hold all its attention, or there is no such block.
    """
    work = program.edit()
    stack = _stack(work)
    unknown = [number for number in kept if not 0 <= number < len(stack)]
    if unknown or not kept:
        raise RefusedError(f"layers {sorted(kept)} are not of the {len(stack)} (from 0) that the model has")
    # The last first: where a block begins is where the one before it ends, which is not to move yet.
    for block in reversed(stack.blocks):
        if block.index not in kept:
            block.end.replace_all_uses_with(block.start)
    return _without_idle_states(work)


def parallel_layers(program: Program, group: int) -> Program:
    """``program`` with runs of ``group`` blocks that all read what the first of them reads, their changes added up.

    As in EasySpec (Wu et al. 2025): on the way to a guess an approximation does, and blocks that do not wait for each
    other can run at once.

    Raises:
        RefusedError: it has no stack of blocks that hold all its attention.
    """
    work = program.edit()
    blocks = _stack(work).blocks
    start = blocks[0].start
    for first in range(0, len(blocks), group):
        together = blocks[first : first + group]
        last = together[-1].end
        readers = list(last.users)
        for block in together[1:]:
            block.start.replace_all_uses_with(start)
        g = Builder(work, last.next, str(last.meta.get("layer", "")))
        total = together[0].end
        for block in together[1:]:
            total = g.call(aten.add.Tensor, total, g.call(aten.sub.Tensor, block.end, start))
        for reader in readers:
            reader.replace_input_with(last, total)
        start = total
    return work.finished()


def _stack(program: Program) -> Layers:
    stack: Layers = program.analysis(layers)
    if stack.outside:
        node, reason = stack.outside[0]
        raise RefusedError(f"{node.name} belongs to no layer: {reason}")
    if not stack.blocks:
        raise RefusedError("the model has no layers of attention")
    return stack


def _without_idle_states(work: Program) -> Program:
    """``work``, finished, without the states that only come back as they were given, or not at all."""
    stepping = work.stepping
    results = dict(zip((spec.name for spec in work.outputs), work.output_node.args[0], strict=True))  # type: ignore[arg-type]
    if stepping is not None:
        logits = [node for name, node in results.items() if name not in stepping.results]
        needed = _behind(logits)
        slots = []
        for group in stepping.slots:
            idle = [state for state in group.states if _writer(results[state.result]) not in needed]
            for state in idle:
                remove_output(work, state.result)
            states = tuple(state for state in group.states if state not in idle)
            if states:
                slots.append(replace(group, states=states))
        work.finished()
        kept = {state.name for group in slots for state in group.states} | {group.length for group in slots}
        for group in stepping.slots:
            for name in [*(state.name for state in group.states), group.length]:
                if name not in kept:
                    remove_input(work, name)
        work.stepping = replace(stepping, slots=tuple(slots))
    return work.finished()


def _writer(result: torch.fx.Node) -> torch.fx.Node:
    """The operator that gives a state: one with several results, of which this is an item."""
    return result.args[0] if result.target is operator.getitem else result  # type: ignore[return-value]


def _behind(nodes: list[torch.fx.Node]) -> set[torch.fx.Node]:
    """All that ``nodes`` are computed from, themselves included."""
    found, ahead = set(nodes), list(nodes)
    while ahead:
        for source in ahead.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                ahead.append(source)
    return found
