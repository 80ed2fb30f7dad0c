"""Rows of the inputs in which attention sees nothing, and what a model makes of them.

A query that sees no key gives zeros in a Program.  Where finite numbers hide keys, a model averages all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
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
from .padded import likely_fillers, mask_inputs, padded, run_on, telling, told_by

# Differences that are less than this share of an output's largest number are none, and rounding may be so many times
# what it is where the Program is known to be right.
_NOTHING = 1e-5
_AS_FAR = 4


@dataclass(frozen=True)
class EmptyRow:
    """The example with a last row that attention sees nothing in.

    Attributes:
        input: what hides it, by holding nothing but ``filler`` there.
        inputs: the example so changed.
        row: it alone, padding and all.
        others: the rows that count, where there is nothing but hidden tokens in this one; None where it counts too.
        across: it is the last of dim 1, as in ``[tokens, batch]``.
    """

    input: str
    filler: int
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
    fillers: dict[str, set[int]] = {}
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
            fillers.setdefault(row.input, set()).add(row.filler)
    known = {name: _sets(program, name, sorted(numbers)) for name, numbers in fillers.items()}
    for name, sets in list(known.items()):
        if any(bool(rows_of_fillers(program.example_inputs[name], s).any()) for s in sets):
            if all_rows:
                raise CaptureError(
                    f"the example holds a row of {name!r} without tokens, which is something else here"
                )
            del known[name]
    return program if not known else replace(program, fillers=program.fillers | known)


def _sets(program: Program, name: str, numbers: list[int]) -> tuple[tuple[int, ...], ...]:
    """All of the numbers together where rows of several of them are without tokens too, else each by itself."""
    mixed = program.example_inputs[name].clone()
    line = mixed.flatten(0, -2)[-1]
    line.copy_(torch.tensor(numbers, dtype=line.dtype)[torch.arange(len(line)) % len(numbers)])
    told = telling(program)
    try:
        now = evaluate(program, told, program.bind(**(dict(program.example_inputs) | {name: mixed})))
    except (RuntimeError, IndexError):
        return tuple((number,) for number in numbers)
    together = any(map(_sees_nothing, now.values()))
    return (tuple(numbers),) if together else tuple((number,) for number in numbers)


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
        for filler, across in product(numbers, (False, True) if given.dim() == 2 else (False,)):
            changed = given.clone()
            (changed.T if across else changed.flatten(0, -2))[-1] = filler
            inputs = dict(example) | {name: changed}
            try:
                now = evaluate(program, told, program.bind(**inputs))
            except (RuntimeError, IndexError):
                continue  # Such as an id that is none of the table's.
            if any(map(_sees_nothing, now.values())):
                shape = specs[name].shape
                # What is of the same rows and tokens is padding with them.
                hidden = alone and len(shape) == 2 and all(s.shape[:2] == shape for s in specs.values())
                last = torch.arange(len(changed)) == len(changed) - 1
                row, others = Rows(shape[0], last, padding=True), Rows(shape[0], ~last)
                counts = None if not hidden or across else others
                found.append(EmptyRow(name, filler, inputs, row, counts, across))
    return found


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
