"""A Program whose steps go through some of its layers only, or through several at once: smaller models inside it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from .analyses.layers import Layers, layers
from .boundary import input_node, remove_input, remove_output
from .builder import Builder
from .errors import RefusedError
from .evaluate import sources_of
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
        asked = f"layer {min(unknown)}" if unknown else "no layer at all"
        raise RefusedError(f"{asked} is asked for, and the model has {len(stack)} (from 0)")
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
    """``work``, finished, without the states that no other output is computed from."""
    stepping = work.stepping
    results = dict(zip((spec.name for spec in work.outputs), work.output_node.args[0], strict=True))  # type: ignore[arg-type]
    if stepping is not None:
        needed = sources_of(node for name, node in results.items() if name not in stepping.results)
        slots = []
        for group in stepping.slots:
            states = tuple(state for state in group.states if input_node(work, state.name) in needed)
            for state in group.states:
                if state not in states:
                    remove_output(work, state.result)
            if states:
                slots.append(replace(group, states=states))
        work.finished()
        kept = {name for group in slots for name in group.driven}
        for group in stepping.slots:
            for name in group.driven - kept:
                remove_input(work, name)
        work.stepping = replace(stepping, slots=tuple(slots))
    return work.finished()
