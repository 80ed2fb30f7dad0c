"""A batch of one, which a model may treat apart: as one without padding, or as one without a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from torch import Tensor

from ..errors import CaptureError, InputError
from ..evaluate import sources_of
from ..fillers import rows_of_fillers
from ..program import Program
from .check import compare_on, nests_as, right_of_two
from .dims import BATCH, example_at, resized
from .padded import holds, likely_fillers, mask_inputs, padded, run_on, telling

# What is added to the scores of a hidden key.
_HIDDEN = -1e9


def treats_one_row_apart(program: Program, model: Callable[..., Any]) -> bool:
    """Whether the model does something else for a row alone than for that row twice, of which the Program is right.

    With other lengths, and with padding and masks that the example lacks.
    """
    alone = replace(program, example_inputs=example_at(program, program.sizes() | {BATCH: 1}))
    trials = chain(islice(resized(program), 1), islice(padded(alone), 1, 2), _changed(alone))
    return any(_is_apart(program, model, inputs) for inputs in trials)


def _is_apart(program: Program, model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> bool:
    expected = run_on(model, inputs)
    if expected is None:
        return False
    try:
        if nests_as(program.structure, expected):
            compare_on(program, inputs, expected)
            return False
    except InputError:
        return False  # It is refused in any batch.
    except CaptureError:
        pass
    return right_of_two(program, inputs, model)


def _changed(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example with other numbers in one input, at every other place: the last stays what it is."""
    example = program.example_inputs
    told = telling(program)
    above = {str(node.target) for node in sources_of(told) if node.op == "placeholder"}
    # Those are tried with padding.
    masks = {str(node.target) for node in mask_inputs(program)} if len(example) > 1 else set()
    for name, value in example.items():
        if name in masks or not value.dim():
            continue
        tells, floats = name in above, value.is_floating_point()
        changed: list[Tensor] = []
        if value.dim() == 1:
            changed = [value // 2 + 1] if tells and not floats else []
        elif floats and tells:
            changed = [_at_every_other(value, -1, [number]) for number in (0, _HIDDEN)]
        elif floats and value.dim() in (2, 3):
            changed = [_at_every_other(value, 1, [0])]
        elif value.dim() == 2:
            known = (n for numbers in program.fillers.get(name, ()) for n in numbers)
            some = dict.fromkeys((*known, *likely_fillers(program, told)))
            changed = [_at_every_other(value, 1, [n for n in some if holds(value.dtype, n)])]
        elif tells and not floats:
            changed = [_at_every_other(value, -1, [number]) for number in (0, 1)]
        for other in changed:
            if not any(bool(rows_of_fillers(other, one).any()) for one in program.fillers.get(name, ())):
                yield dict(example) | {name: other}


def _at_every_other(value: Tensor, dim: int, numbers: Sequence[float]) -> Tensor:
    """``value`` with ``numbers`` in turns at every other place of a dim."""
    changed = value.clone()
    line = changed.movedim(dim, -1)
    for turn, place in enumerate(range(line.shape[-1] % 2, line.shape[-1], 2)):
        line[..., place] = numbers[turn % len(numbers)]
    return changed
