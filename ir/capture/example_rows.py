"""Rows of the example: one alone is repeated, as a traced size of one is fixed, unless the model takes no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..program import Program
from .dims import Dims, dynamic_dims, why_fixed
from .inputs import unlike

Place = tuple[str, int]
Reasons = Mapping[Place, str]

_ANOTHER = "the model does something else at 1 than at more: give a longer example for that"
_REJECTED = "the model rejects the example with more there; give a longer example if it is to vary"
_TIED = "another input of the example has more where the two have to be alike; give longer examples of both"


class NotTheExampleError(Exception):
    """The Program of an example whose sizes of one were repeated does not take the example as it was given."""

    def __init__(self, kept: Reasons) -> None:
        """``kept``: where sizes of one have to stay, and why."""
        super().__init__()
        self.kept = kept


@dataclass(frozen=True)
class Example:
    """Inputs to capture with, the dims of them that may vary, and what has to be said of them."""

    inputs: Mapping[str, Tensor]
    dims: Dims
    notes: tuple[str, ...] = ()


def examples(
    inputs: Mapping[str, Tensor],
    dynamic: Any,
    tokens_first: bool,
    suggested: bool = False,
    kept: Reasons | None = None,
) -> list[Example]:
    """What to capture with, of which the first counts that the model takes.

    An input of one row may have no batch, such as a temperature or a table of positions: where the model rejects all
    of them with more rows, some are left as they are.  Where dims are named, those are repeated that have one name.

    Args:
        dynamic: what ``capture`` was told.
        tokens_first: whether rows are counted by the second dim.
        suggested: whether nobody gave the inputs, so that one row of them would do.
        kept: where sizes of one stay, and why.
    """
    # Of [tokens, rows, features]; what has two dims, such as a mask, has rows first.
    place = {name: int(tokens_first and value.dim() == 3) for name, value in inputs.items()}
    kept = kept or {}
    dims = dynamic_dims(inputs, dynamic, tokens_first)
    counted = [name for name, value in inputs.items() if value.dim() and place[name] in dims[name]]
    single = [
        name for name in counted if inputs[name].shape[place[name]] == 1 and (name, place[name]) not in kept
    ]
    if not single or single[0] != counted[0]:
        found = [_example(inputs, dynamic, tokens_first, kept)]
        if suggested and (dynamic == "auto" or not counted):
            one = {name: value.narrow(place[name], 0, 1) for name, value in inputs.items()}
            why = "the model rejects an example of more"
            found.append(_example(one, dynamic, tokens_first, {(name, place[name]): why for name in one}))
        return found
    # Two inputs must not fit each other because one was repeated.
    size = unlike(value.shape[place[name]] for name, value in inputs.items() if value.dim())
    found = []
    for places in _repeated(inputs, dims, {name: place[name] for name in single}, dynamic == "auto"):
        more = dict(inputs)
        for name, dim in ((name, dim) for name, several in places.items() for dim in several):
            more[name] = more[name].repeat_interleave(size, dim)
        # What has rows says how many there are, and not an input before it that has none.
        ordered = {name: more[name] for name in sorted(more, key=lambda name: name not in places)}
        example = _example(ordered, dynamic, tokens_first, kept)
        found.append(replace(example, inputs=more))
    if dynamic == "auto":
        stay = dict(kept) | {(name, place[name]): _REJECTED for name in single}
        found.append(_example(inputs, dynamic, tokens_first, stay))
    return found


def _repeated(
    inputs: Mapping[str, Tensor], dims: Dims, single: Mapping[str, int], guess: bool
) -> list[dict[str, list[int]]]:
    """Which dims of which inputs to repeat; each to be tried where the model rejects those before it.

    Args:
        single: the dim of each input that may count rows, of which it has one.
        guess: whether nobody named the dims.
    """
    first, *others = single
    if not guess:
        label = dims[first][single[first]]
        alike = {name: [dim for dim in named if named[dim] == label] for name, named in dims.items()}
        return [{name: [dim for dim in alike[name] if inputs[name].shape[dim] == 1] for name in inputs}]
    chosen = [list(single), [name for name in single if inputs[name].numel() > 1]]
    chosen += [[name for name in single if name != left_out] for left_out in others] + [[first]]
    distinct = [names for at, names in enumerate(chosen) if names and names not in chosen[:at]]
    return [{name: [single[name]] for name in names} for names in distinct]


def _example(inputs: Mapping[str, Tensor], dynamic: Any, tokens_first: bool, kept: Reasons) -> Example:
    dims = {
        name: {dim: label for dim, label in named.items() if (name, dim) not in kept}
        for name, named in dynamic_dims(inputs, dynamic, tokens_first).items()
    }
    notes = []
    for dim, why in dict.fromkeys((dim, why) for (_, dim), why in kept.items()):
        names = [repr(name) for (name, other), reason in kept.items() if (other, reason) == (dim, why)]
        notes.append(f"dim {dim} of {' and of '.join(names)} is fixed at 1, the example's: {why}")
    return Example(inputs, dims, tuple(notes))


def check_takes(program: Program, given: Mapping[str, Tensor]) -> None:
    """Raise NotTheExampleError where ``given`` has a size of one that ``program`` does not take."""
    kept = {}
    sizes = defaultdict(set)
    for spec in program.called_with:
        for size, want in zip(given[spec.name].shape, spec.shape, strict=True):
            sizes[want].add(size)
    for spec in program.called_with:
        for dim, (size, want) in enumerate(zip(given[spec.name].shape, spec.shape, strict=True)):
            if size != 1:
                continue
            if isinstance(want, int) and want != 1:
                kept[spec.name, dim] = why_fixed(program, spec.name, dim) or _ANOTHER
            elif isinstance(want, str) and program.ranges.get(want, (1, None))[0] > 1:
                kept[spec.name, dim] = _ANOTHER
            elif isinstance(want, str) and len(sizes[want]) > 1:
                kept[spec.name, dim] = _TIED
    if kept:
        raise NotTheExampleError(kept)
