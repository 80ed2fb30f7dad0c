"""A batch of one, which a model may treat apart: as one without padding, or as one without a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, product
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..evaluate import sources_of
from ..fillers import has_row_of
from ..program import Program
from .check import agrees, right_of_two
from .dims import with_one_row
from .padded import holds, likely_fillers, masks_beside, padded, run_on, telling

# PyTorch counts with these on every device.
_TRIED = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
# What is added to the scores of a hidden key.
_HIDDEN = -1e9


def treats_one_row_apart(program: Program, model: Callable[..., Any]) -> bool:
    """Whether the model does something else for a row alone than for that row twice, of which the Program is right.

    With padding and masks that the example lacks; ``compare_with_model`` has tried the example.
    """
    alone = with_one_row(program)
    if alone is None:
        return False
    trials = chain(islice(padded(alone), 1, 2), _changed(alone))
    return any(_is_apart(program, model, inputs) for inputs in trials)


def _is_apart(program: Program, model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> bool:
    expected = run_on(model, inputs)
    try:
        if expected is None or agrees(program, inputs, expected):
            return False
    except InputError:
        return False  # It is refused in any batch.
    return right_of_two(program, inputs, model)


def _changed(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example with other numbers in one input, as a rule at every other place: the last stays what it is."""
    told = telling(program)
    above = {str(node.target) for node in sources_of(told) if node.op == "placeholder"}
    masks, likely = masks_beside(program), [*likely_fillers(program, told), *_compared(program)]
    for name, value in program.example_inputs.items():
        sets = program.fillers.get(name, ())
        for other in () if name in masks else _others(value, name in above, [*chain(*sets), *likely]):
            if not has_row_of(other, sets):
                yield dict(program.example_inputs) | {name: other}


def _others(value: Tensor, tells: bool, fillers: Iterable[int]) -> Iterator[Tensor]:
    """An input that holds something else; ``tells``: it has a part in what attention sees."""
    if value.dtype not in _TRIED:
        return
    # Such as lengths, times and weights.
    if value.dim() < 2 or value.numel() == 1:
        if value.is_floating_point():
            yield value / 2 + 0.25
        else:
            yield ~value if value.dtype == torch.bool else value // 2 + 1
        return
    tokens = 1 if value.shape[1] > 1 else 0
    if value.is_floating_point():
        for number in (0, _HIDDEN) if tells else (0,) if value.dim() < 4 else ():
            yield _at_every_other(value, -1 if tells else tokens, [number])
    elif value.dim() == 2:
        yield _at_every_other(value, tokens, [n for n in dict.fromkeys(fillers) if holds(value.dtype, n)])
    else:
        for dim, number in product((dim for dim in (1, -1) if value.shape[dim] > 1), (0, 1)):
            yield _at_every_other(value, dim, [number])


def _compared(program: Program) -> list[int]:
    """Whole numbers that values are compared with, such as ids with that of padding."""
    results = ((n, n.meta.get("val")) for n in program.graph.nodes if n.op == "call_function")
    compared = [n for n, value in results if isinstance(value, Tensor) and value.dtype == torch.bool]
    return [n.args[1] for n in compared if len(n.args) == 2 and type(n.args[1]) is int]


def _at_every_other(value: Tensor, dim: int, numbers: Sequence[float]) -> Tensor:
    """``value`` with ``numbers`` in turns at every other place of a dim."""
    changed = value.clone()
    line = changed.movedim(dim, -1)
    for turn, place in enumerate(range(line.shape[-1] % 2, line.shape[-1], 2)):
        line[..., place] = numbers[turn % len(numbers)]
    return changed
