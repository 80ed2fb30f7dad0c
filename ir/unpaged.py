"""A Program whose rows share pages, for where each row is to have slots of its own."""

from __future__ import annotations

from dataclasses import replace

from .boundary import (
    add_input,
    add_output,
    describe_outputs,
    input_node,
    new_dim,
    remove_input,
    remove_output,
)
from .builder import Builder
from .dialect import is_dialect
from .inference import infer_shapes
from .operands import arguments
from .program import Program
from .stepping import Slots, State

# Which result of attention an operand comes back as.
_PLACES = {"past_key": 1, "past_value": 2}


def unpaged(program: Program) -> Program:
    """``program`` with states ``[batch, heads, slots, width]`` in the place of pools; itself where it has no pools.

    Where states are handed from step to step by value, as in a file that generates by itself, a pool is of no use.
    """
    stepping = program.stepping
    if stepping is None or all(slots.pages is None for slots in stepping.slots):
        return program
    work = program.edit()
    slots = tuple(_own(work, group) for group in stepping.slots)
    work.stepping = replace(stepping, slots=slots)
    infer_shapes(work)
    work.finished()
    kept = work.stepping.driven
    for name in stepping.driven - kept:
        remove_input(work, name)
    describe_outputs(work)
    return work


def _own(work: Program, group: Slots) -> Slots:
    """A group of layers over states of their own; its pools are left without readers."""
    if group.pages is None:
        return group
    capacity = new_dim(work, f"capacity_{group.window}" if group.window else "capacity")
    states = []
    for state in group.states:
        (read,) = (node for node in input_node(work, state.name).users if is_dialect(node, "read_pages"))
        (step,) = read.users
        batch, heads, _, width = read.meta["val"].shape
        past = add_input(work, f"past_{state.name}", (batch, heads, capacity, width), read.meta["val"].dtype)
        place = next(_PLACES[name] for name, given in arguments(step).items() if given is read)
        read.replace_all_uses_with(past)
        written = Builder(work, step.next, str(step.meta.get("layer", ""))).item(step, place)
        result = add_output(work, written, f"present_{past.target}")
        remove_output(work, state.result)
        states.append(State(str(past.target), result))
    return replace(group, capacity=work.symbols[str(capacity)], states=tuple(states), pages=None)
