"""Sizes that no trace stands for: one, others below the least of a trace, and those that a guard leaves out alone.

The exporter takes every size that varies for two or more and writes no guard against less.  And it takes ``table[:n]``
of a table of 64 rows for the table itself at 64, and for a part of it at any other size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, pairwise, product
from typing import Any

import torch
from torch import Tensor

from ..fillers import has_row_of
from ..program import Program
from .check import agrees
from .conditions import intersect
from .dims import BATCH, example_at, without_one
from .export import UNTRACED
from .one_row import treats_one_row_apart
from .padded import holds, likely_fillers, masks_beside, padded, run_on, telling

# Sizes below such a one are tried where the trace leaves them out: slices of the first and of the others do that.
_FEW = 4
# Up to such a size more rows than the example has are tried too.
_SMALL = 128


def with_untraced_sizes(program: Program, model: Callable[..., Any]) -> Program:
    """``program`` with the untraced sizes at which it is what the model is, and without the others.

    A model that branches on such a size (``if n == 1``) was traced on the other side.  A size of one that the model
    itself rejects shows nothing.
    """
    notes = {name: value for name, value in program.notes.items() if name != UNTRACED}
    example = program.sizes()
    if treats_one_row_apart(program, model):
        program = without_one(program, BATCH)
    for name in dict.fromkeys(program.symbols.values()):
        low, high = program.ranges.get(name, (1, None))
        if name == BATCH or name not in example or low > _FEW:
            continue
        for size in range(max(1, low - 1), 0, -1):
            whole = replace(program, ranges=program.ranges | {name: (size, high)})
            as_model = _as_model(whole, model, name, size)
            if low == 1 and as_model is False:
                program = without_one(program, name)
            if not as_model:
                break
            program = whole
    # What a model does there with another input, or where two tables are read whole, is in no trial.
    ranges, untraced = dict(program.ranges), program.notes.get(UNTRACED, {})
    alone = len(untraced) == len(program.called_with) == 1
    for symbol, (wider, sizes) in untraced.items() if alone else ():
        name = program.symbols[symbol]
        for size, following in pairwise([*sizes, None]):
            low, high = ranges[name]
            whole = replace(program, ranges=ranges | {name: (low, size)})
            if high != size - 1 or intersect((size, size), wider) != (size, size):
                break
            if not _as_model(whole, model, name, size):
                break
            ranges[name] = intersect((low, None if following is None else following - 1), wider)
    return replace(program, ranges=ranges, notes=notes)


def _as_model(program: Program, model: Callable[..., Any], name: str, size: int) -> bool | None:
    """Whether ``program`` computes what the model does where ``name`` is ``size``; None where the model rejects it.

    With other batches, and with masks that hide something: a model may do without them at just this size.
    """
    sizes = program.sizes() | {name: size}
    trials = [
        replace(program, example_inputs=example_at(program, sizes | more)) for more in _batches(program, size)
    ]
    given = [trial.example_inputs for trial in trials]
    shown = False
    tried: list[Mapping[str, Tensor]] = []
    for inputs in chain(given, *map(padded, trials), _varied(trials[0]) if trials else ()):
        # One token is not padded in six ways.
        if any(_same(inputs, other) for other in tried):
            continue
        tried.append(inputs)
        expected = run_on(model, inputs)
        if expected is None:
            continue
        if not agrees(program, inputs, expected):
            return False
        shown = True
    return shown or None


def _varied(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example with other numbers in one input, which may stand for padding, on either side and anywhere.

    What is refused for a row without tokens says nothing of a size, and masks are tried with padding.
    """
    example = program.example_inputs
    fillers = likely_fillers(program, telling(program))
    masks = masks_beside(program)
    for name, value in example.items():
        floats = value.is_floating_point()
        if name in masks or value.dim() not in ((2, 3) if floats else (2,)):
            continue
        half = value.shape[1] // 2
        # Other inputs may go together with this one, in ways that nobody knows.
        some = [n for n in fillers if len(example) == 1 or n in (0, 1)]
        numbers = [0] if floats else [n for n in some if holds(value.dtype, n)]
        for number, place in product(numbers, (slice(None, half), slice(half, None), slice(None, None, 2))):
            changed = value.clone()
            changed[:, place] = number
            if not has_row_of(changed, program.fillers.get(name, ())):
                yield dict(example) | {name: changed}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _batches(program: Program, size: int) -> list[dict[str, int]]:
    """The example's rows, one row, and more rows than the example has, as far as batches may vary.

    What is computed of a long table is large: of a few rows then.
    """
    rows = program.sizes().get(BATCH)
    if rows is None:
        return [{}]
    low, high = program.ranges.get(BATCH, (1, None))
    counts = dict.fromkeys((rows, 1, 2 * rows + 1) if size <= _SMALL else (min(rows, 2), 1))
    return [{BATCH: count} for count in counts if low <= count and (high is None or count <= high)]
