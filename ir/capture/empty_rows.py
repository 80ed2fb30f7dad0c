"""Rows of the inputs in which attention sees nothing, and what a model makes of them.

A query that sees no key gives zeros in a Program.  Where finite numbers hide keys, a model averages all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from ..analyses.layers import content_flow, is_attention
from ..errors import CaptureError
from ..evaluate import evaluate, sources_of
from ..fillers import has_row_of
from ..program import Program, TensorSpec
from ..raising._cone import Cone
from ..raising._scores import LOW
from ..structure import Structure
from .check import Rows, compare_on
from .padded import holds, likely_fillers, mask_inputs, padded, run_on, telling, told_by

aten = torch.ops.aten

# Differences that are less than this share of an output's largest number are none, and rounding may be so many times
# what it is where the Program is known to be right.
_NOTHING = 1e-5
_AS_FAR = 4
# Of the ids of a table it is asked of texts so long whether they are hidden, of so many numbers of a mask at once and
# so often at most; else of what lies between two that are, as far as this.
_SHORT, _AT_ONCE, _MOST_TIMES, _SPAN = 8, 1 << 22, 64, 256


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
    read = program.analysis(_read_by_masks)
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
        if has_row_of(program.example_inputs[name], sets):
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
            for fillers, rows in _fillers(program, told, node, across):
                for numbers in rows:
                    changed = _with_row(given, numbers, across)
                    last = torch.arange(len(changed)) == len(changed) - 1
                    this, others = Rows(shape[0], last, padding=True), Rows(shape[0], ~last)
                    counts = None if not hidden or across else others
                    inputs = dict(example) | {name: changed}
                    found.append(EmptyRow(name, fillers, inputs, this, counts, across))
    return found


def _fillers(
    program: Program, told: Sequence[fx.Node], node: fx.Node, across: bool
) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Numbers of which, in any order, a row is without tokens; and some such rows, of these numbers in turns."""
    name = str(node.target)
    given = program.example_inputs[name]

    @cache
    def emptied(numbers: tuple[int, ...]) -> set[fx.Node]:
        """What sees nothing of a row of ``numbers``."""
        inputs = dict(program.example_inputs) | {name: _with_row(given, numbers, across)}
        try:
            now = evaluate(program, told, program.bind(**inputs))
        except (RuntimeError, IndexError):
            return set()  # Such as an id that is none of the table's.
        return {n for n in told if _sees_nothing(now[n])}

    likely = [n for n in likely_fillers(program, told) if holds(given.dtype, n)]
    of_table = {} if across else _rows_of_one_id(program, told, node)
    known: set[tuple[int, ...]] = set()
    for mask in told:
        numbers = of_table.get(mask)
        if numbers is None:
            numbers = [n for n in likely if mask in emptied((n,))]
            # What lies between those that the code names may be hidden too, as by ``ids < 4``.
            between = range(min(numbers), min(max(numbers), min(numbers) + _SPAN)) if numbers else ()
            numbers += [n for n in between if n not in likely and mask in emptied((n,))]
        fillers = tuple(sorted(numbers))
        if not fillers or fillers in known:
            continue
        known.add(fillers)
        some = [(n,) for n in likely if n in numbers] or [fillers[:1]]
        mixed = _shuffled(fillers)[: given.shape[0 if across else -1]]
        if len(fillers) == 1:
            yield fillers, some
        elif mask in emptied(mixed):
            yield fillers, [*some, mixed]
        else:
            # It depends on more than on each token by itself what is hidden.
            yield from ((one, [one]) for one in some)


def _shuffled(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """In no order that a model may know."""
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    return tuple(numbers[place] for place in order.tolist())


def _rows_of_one_id(program: Program, told: Sequence[fx.Node], node: fx.Node) -> dict[fx.Node, list[int]]:
    """For every mask the ids of a table that it hides, asked one by one.

    Empty where the input numbers no rows of a table, or it would take long.
    """
    name = str(node.target)
    spec = next(spec for spec in program.called_with if spec.name == name)
    count = max((_rows(n) for n in program.graph.nodes if _looks_up(n, node)), default=0)
    read = program.analysis(_read_by_masks)
    if read is None or not any(node in inputs for inputs in read) or len(spec.shape) != 2 or not count:
        return {}
    batch, length = spec.shape
    tokens, rows = program.example_inputs[name].shape[1], program.example_inputs[name].shape[0]
    if isinstance(length, str):
        # Masks of queries and keys are as large as the square of it.
        tokens = min(tokens, max(_SHORT, program.ranges.get(length, (1, None))[0]))
    if isinstance(batch, str):
        high = program.ranges.get(batch, (1, None))[1]
        rows = max(1, min(_AT_ONCE // (tokens * tokens), count if high is None else high))
    if count > _MOST_TIMES * rows:
        return {}
    needed = {str(n.target) for n in sources_of(told) if n.op == "placeholder"}
    inputs = {
        other.name: _cut(program.example_inputs[other.name], other, {batch: rows, length: tokens})
        for other in program.called_with
        if other.name in needed
    }
    found: dict[fx.Node, list[int]] = {mask: [] for mask in told}
    for start in range(0, count, rows):
        # The last may be asked for more than once: the number of rows may be fixed.
        ids = torch.arange(start, start + rows).clamp(max=count - 1)
        inputs[name] = ids[:, None].expand(-1, tokens).to(program.example_inputs[name].dtype)
        try:
            now = evaluate(program, told, inputs)
        except (RuntimeError, IndexError, KeyError):
            return {}
        for mask, value in now.items():
            if value.shape[0] == rows:
                hidden = _hidden(value).all(-1).reshape(rows, -1).any(1)
                found[mask] += ids[hidden].unique().tolist()
    # What hides every id tells of none.
    return {mask: numbers for mask, numbers in found.items() if len(numbers) < count}


def _looks_up(lookup: fx.Node, ids: fx.Node) -> bool:
    return lookup.target is aten.embedding.default and ids in sources_of([lookup.args[1]])  # type: ignore[list-item]


def _rows(lookup: fx.Node) -> int:
    return int(lookup.args[0].meta["val"].shape[0])  # type: ignore[union-attr]


def _cut(value: Tensor, spec: TensorSpec, sizes: Mapping[int | str, int]) -> Tensor:
    """``value`` at other sizes: its first row again and again, and of tokens the first."""
    for dim, (name, known) in enumerate(zip(spec.shape, value.shape, strict=True)):
        size = sizes.get(name, known) if isinstance(name, str) else known
        if size < known:
            value = value.narrow(dim, 0, size)
        elif size > known:
            value = value.index_select(dim, torch.zeros(size, dtype=torch.int64))
    return value


def _with_row(given: Tensor, numbers: Sequence[int], across: bool) -> Tensor:
    """``given``, the last row of which is ``numbers`` in turns."""
    changed = given.clone()
    line = (changed.T if across else changed.flatten(0, -2))[-1]
    line.copy_(torch.tensor(numbers)[torch.arange(len(line)) % len(numbers)])
    return changed


def _sees_nothing(told: Tensor) -> bool:
    """Whether a row of padding, or of a mask that is added, hides every key."""
    return bool(_hidden(told).all(-1).any())


def _hidden(told: Tensor) -> Tensor:
    return told <= LOW if told.is_floating_point() else told == 0


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
    read = program.analysis(_read_by_masks)
    if read is None or len(set().union(*read)) > 1 or not all(map(told_by, attentions)):
        return False

    def inputs(node: fx.Node) -> set[fx.Node]:
        return {n for n in nx.ancestors(flow, node) | {node} if n.op == "placeholder"}

    return all(inputs(node.args[0]) <= inputs(node.args[1]) for node in attentions)
