"""Rows of the inputs in which attention sees nothing, and what a model makes of them.

A query that sees no key gives zeros in a Program.  Where finite numbers hide keys, a model averages all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from ..analyses.layers import content_flow, is_attention
from ..errors import CaptureError
from ..evaluate import evaluate, sources_of
from ..fillers import rows_of_fillers
from ..program import Program
from ..raising._cone import Cone
from ..raising._scores import LOW
from ..structure import Structure
from .check import Rows, compare_on
from .padded import holds, likely_fillers, mask_inputs, padded, run_on, telling, told_by

# Differences that are less than this share of an output's largest number are none, and rounding may be so many times
# what it is where the Program is known to be right.
_NOTHING = 1e-5
_AS_FAR = 4
# Numbers that may lie between two that stand for no token, and do so too.
_SPAN = 256


@dataclass(frozen=True)
class EmptyRow:
    """The example with a last row that attention sees nothing in.

    Attributes:
        input: what hides it, by holding nothing but ``fillers`` there.
        inputs: the example so changed.
        row: it alone, padding and all.
        others: the rows that count, where there is nothing but hidden tokens in this one; None where it counts too.
        across: it is the last of dim 1, as in ``[tokens, batch]``.
    """

    input: str
    fillers: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    row: Rows
    others: Rows | None
    across: bool = False


def can_be_tried(program: Program) -> bool:
    """Whether padded rows of the example show what masks do.

    They do where every mask is told by one input, and where those are all of zeros and ones, ``[batch, tokens]``.  Of
    what is computed of ids, rows without tokens are all that is not proved.
    """
    # Inputs that are read, and not their sizes alone.
    read = _read_by_masks(program)
    if read is None:
        return False
    masks = set(mask_inputs(program))
    shown = not masks or next(padded(program), None) is not None
    told = set().union(*read)
    return (
        shown
        and all(len(inputs) <= 1 for inputs in read)
        and (
            told == masks
            or {row.input for row in program.analysis(_empty_rows)} == {str(n.target) for n in told}
        )
    )


def wrong_in_empty_rows(program: Program, model: Callable[..., Any], exact: Program) -> str | None:
    """What differs from the model in the rows that count, where one sees nothing; None where nothing does.

    Args:
        exact: the Program with its masks as they were, to tell a difference from rounding by.
    """
    for row in program.analysis(_empty_rows):
        expected = run_on(model, row.inputs)
        if expected is None:
            continue
        try:
            found = compare_on(program, row.inputs, expected, row.others)
            if found > _AS_FAR * compare_on(exact, row.inputs, expected, row.others) + _noise(expected):
                return f"a row of {row.input} without tokens changes what counts by {found:.3g}"
        except CaptureError as error:
            return str(error)
    return None


def refusing_empty_rows(program: Program, model: Callable[..., Any], all_rows: bool) -> Program:
    """``program``, which takes no row without tokens that it makes something else of than the model.

    Args:
        all_rows: also where nothing but hidden tokens is in it, which are padding where the model says so.
    """
    wrong: dict[str, list[tuple[int, ...]]] = {}
    for row in program.analysis(_empty_rows):
        if (row.others is not None and not all_rows) or row.across:
            continue
        expected = run_on(model, row.inputs)
        if expected is None:
            continue
        try:
            found = max(compare_on(program, row.inputs, expected, rows) for rows in (row.row, None))
            same = found <= _AS_FAR * (program.facts.deviation or 0.0) + _noise(expected)
        except CaptureError:
            same = False
        if not same:
            wrong.setdefault(row.input, []).append(row.fillers)
    known = {name: _widest(sets) for name, sets in wrong.items()}
    for name, sets in list(known.items()):
        if any(bool(rows_of_fillers(program.example_inputs[name], s).any()) for s in sets):
            if all_rows:
                raise CaptureError(
                    f"the example holds a row of {name!r} without tokens, which is something else here"
                )
            del known[name]
    return program if not known else replace(program, fillers=program.fillers | known)


def _widest(sets: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """Those that are no part of another."""
    return tuple(one for one in sorted(set(sets)) if not any(set(one) < set(other) for other in sets))


def _noise(result: Any) -> float:
    floats = [value for value in Structure.flatten(result) if value.is_floating_point() and value.numel()]
    return _NOTHING * max((float(value.abs().max()) for value in floats), default=0.0)


def _empty_rows(program: Program) -> list[EmptyRow]:
    specs = {spec.name: spec for spec in program.called_with}
    told = telling(program)
    example = program.example_inputs
    numbers = likely_fillers(program, told)
    above = sources_of(told)
    alone = _sees_itself(program)
    found = []
    for node in program.graph.nodes:
        name = str(node.target)
        given = example.get(name) if node in above and node.op == "placeholder" else None
        if given is None or given.is_floating_point() or given.dim() < 2 or not given.numel():
            continue
        shape = specs[name].shape
        # What is of the same rows and tokens is padding with them.
        hidden = alone and len(shape) == 2 and all(s.shape[:2] == shape for s in specs.values())
        for across in (False, True) if given.dim() == 2 else (False,):
            row = partial(_with_row, given, across=across)

            def empties(fillers: Sequence[int], name: str = name, row: Any = row) -> bool:
                changed = row(fillers)
                if changed is None:
                    return False
                try:
                    now = evaluate(program, told, program.bind(**(dict(example) | {name: changed})))
                except (RuntimeError, IndexError):
                    return False  # Such as an id that is none of the table's.
                return any(map(_sees_nothing, now.values()))

            for fillers in _combined(numbers, empties):
                changed = row(fillers)
                last = torch.arange(len(changed)) == len(changed) - 1
                this, others = Rows(shape[0], last, padding=True), Rows(shape[0], ~last)
                counts = None if not hidden or across else others
                found.append(EmptyRow(name, fillers, dict(example) | {name: changed}, this, counts, across))
    return found


def _with_row(given: Tensor, fillers: Sequence[int], across: bool) -> Tensor | None:
    """``given``, the last row of which is ``fillers`` in turns; None where its dtype has no such number."""
    if not all(holds(given.dtype, filler) for filler in fillers):
        return None
    changed = given.clone()
    line = (changed.T if across else changed.flatten(0, -2))[-1]
    line.copy_(torch.tensor(fillers)[torch.arange(len(line)) % len(fillers)])
    return changed


def _combined(numbers: Sequence[int], empties: Callable[[Sequence[int]], bool]) -> list[tuple[int, ...]]:
    """Of ``numbers``, what makes a row without tokens: each by itself, and together.

    Where all of them do together, so may what lies between them, as in ``ids < 4``.
    """
    single = [number for number in numbers if empties((number,))]
    if len(single) < 2:
        return [(number,) for number in single]
    if empties(single):
        between = range(min(single), min(max(single), min(single) + _SPAN) + 1)
        wide = sorted({*single, *(n for n in between if n not in single and empties((n,)))})
        mixed = [tuple(wide) if empties(wide) else tuple(sorted(single))]
    else:
        mixed = [pair for pair in combinations(sorted(single), 2) if empties(pair)]
    return [*((number,) for number in single), *mixed]


def _sees_nothing(told: Tensor) -> bool:
    """Whether a row of padding, or of a mask that is added, hides every key."""
    hidden = told <= LOW if told.is_floating_point() else told == 0
    return bool(hidden.all(-1).any())


def _read_by_masks(program: Program) -> list[frozenset[fx.Node]] | None:
    """Inputs whose numbers tell attention what to see, of each mask; None where not all of what makes them is known."""
    cones = [Cone.above(program, node) for node in telling(program)]
    return None if None in cones else [cone.inputs for cone in cones if cone is not None]


def _sees_itself(program: Program) -> bool:
    """Whether one input tells all attention what to hide, and nothing is in its queries but what is in its keys.

    A mask that some layers hide keys by and others do not tells no padding: what it hides is read there.
    """
    flow = content_flow(program)
    attentions = [node for node in program.graph.nodes if is_attention(node)]
    read = _read_by_masks(program)
    if read is None or len(set().union(*read)) > 1 or not all(map(told_by, attentions)):
        return False

    def inputs(node: fx.Node) -> set[fx.Node]:
        return {n for n in nx.ancestors(flow, node) | {node} if n.op == "placeholder"}

    return all(inputs(node.args[0]) <= inputs(node.args[1]) for node in attentions)
