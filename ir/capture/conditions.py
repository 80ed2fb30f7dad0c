"""Which dimensions stay free, and within which ranges, so that every guard of the exported program holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor
from torch.export import ExportedProgram

from ..errors import CaptureError
from .dims import BATCH, Dims
from .guards import Guard, Place, UnreadableGuard, at, guards_of, holds_throughout, interval, left_out_alone

Range = tuple[int, int | None]

# No larger size is tried: a model of long texts takes its time for one.
_LONGEST = 1024
_SAMPLES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 32, 33, 64, 65, 100, 127, 197, 256, 511, 1000, 2049)


@dataclass
class Conditions:
    """Dims that may vary, the ranges of their names, and a line for every dim that was fixed.

    ``untraced`` holds sizes beyond a range that a guard leaves out alone, to be tried; ``wider`` the ranges with them.
    """

    dynamic: Dims
    ranges: dict[str, Range] = field(default_factory=dict)
    wider: dict[str, Range] = field(default_factory=dict)
    untraced: dict[str, set[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def conditions_of(
    exported: ExportedProgram,
    names: Mapping[str, str],
    inputs: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, str]],
    may_fix: bool,
) -> Conditions:
    """What the guards of ``exported`` leave of ``dynamic``; ``names`` maps its placeholders to the inputs.

    Raises:
        CaptureError: as :func:`settle`.
    """
    try:
        guards = [
            replace(guard, places=tuple((names[name], dim) for name, dim in guard.places))
            for guard in guards_of(exported)
        ]
    except (UnreadableGuard, KeyError) as error:
        if not may_fix:
            raise CaptureError(
                f"the model branches on sizes in a way that cannot be read ({error}): "
                "pass dynamic={} to fix all sizes"
            ) from error
        return Conditions(
            {},
            notes=[
                f"all sizes are fixed: the model branches on sizes in a way that cannot be read ({error})"
            ],
        )
    return settle(guards, inputs, dynamic, may_fix)


def settle(
    guards: list[Guard], inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]], may_fix: bool
) -> Conditions:
    """Turn ``guards`` into ranges, and fix the dimensions of those that are none.

    ``may_fix`` is false when the caller named the dims that must vary.

    Raises:
        CaptureError: a dim that the caller named would have to be fixed; the message names the guard.
    """
    found = Conditions({name: dict(dims) for name, dims in dynamic.items()})
    while True:
        sizes = _sizes(inputs, found.dynamic)
        for guard in guards:
            if guard.equality:
                _merge(found.dynamic, *(sizes[place] for place in guard.places))
                sizes = _sizes(inputs, found.dynamic)
        broken = _ranges(guards, inputs, sizes, found)
        if broken is None:
            return found
        guard, label = broken
        name, dim = next(place for place in guard.places if sizes[place] == label)
        size = inputs[name].shape[dim]
        if not may_fix:
            raise CaptureError(
                f"dim {dim} of {name!r} was to vary as {label!r} but the model branches on {guard.text}, and only "
                f"the side taken at {size} was traced: leave the dim out of dynamic to fix it at {size}, or compute "
                "both sides (torch.where) instead of branching"
            )
        found.notes.append(
            f"dim {dim} of {name!r} is fixed at {size}: the model branches on {guard.text}; capture it at the size "
            "you need, or compute both sides (torch.where) instead of branching"
        )
        found.dynamic = {
            name: {dim: other for dim, other in dims.items() if other != label}
            for name, dims in found.dynamic.items()
        }


def _sizes(inputs: Mapping[str, Tensor], dynamic: Dims) -> dict[Place, int | str]:
    """The name of every size that may vary, the number of every other."""
    return {
        (name, dim): dynamic.get(name, {}).get(dim, int(size))
        for name, tensor in inputs.items()
        for dim, size in enumerate(tensor.shape)
    }


def _merge(dynamic: Dims, *sizes: int | str) -> None:
    """Give two dims that the model holds equal the name that comes first."""
    if not all(isinstance(size, str) for size in sizes):
        return
    order = [label for dims in dynamic.values() for label in dims.values() if label in sizes]
    for dims in dynamic.values():
        for dim, label in dims.items():
            dims[dim] = order[0] if label in sizes else label


def _ranges(
    guards: list[Guard], inputs: Mapping[str, Tensor], sizes: Mapping[Place, int | str], found: Conditions
) -> tuple[Guard, str] | None:
    """Fill ``found.ranges``; the first guard that is no range comes back with the name of the dim to fix."""
    found.ranges, found.wider, found.untraced = {}, {}, {}
    together = []
    for guard in guards:
        names = list(dict.fromkeys(s for place in guard.places if isinstance(s := sizes[place], str)))
        if len(names) > 1:
            together.append((guard, names))
        if len(names) != 1:
            continue
        label = names[0]
        place = next(place for place in guard.places if sizes[place] == label)
        example = inputs[place[0]].shape[place[1]]
        holds = partial(_holds, guard, sizes, label)
        limits = interval(holds, example)
        if limits is None:
            return guard, label
        found.ranges[label] = intersect(limits, found.ranges.get(label, (1, None)))
        alone = left_out_alone(holds, example)
        if alone is not None and example < alone <= _LONGEST and label != BATCH:
            found.untraced.setdefault(label, set()).add(alone)
        else:
            found.wider[label] = intersect(limits, found.wider.get(label, (1, None)))
    for guard, names in together:
        # A batch is the size most often asked to vary.
        order = [*(n for n in reversed(names) if n != BATCH), *(n for n in names if n == BATCH)]
        if _throughout(guard, names, sizes, found.ranges):
            continue
        for name in order:
            longer = found.ranges | {name: intersect((2, None), found.ranges.get(name, (1, None)))}
            # Layouts in memory of one entry are all alike, which is a branch of PyTorch's own.
            if name != BATCH and _throughout(guard, names, sizes, longer):
                found.ranges = longer
                break
        else:
            return guard, order[0]
    return None


def _throughout(
    guard: Guard, names: list[str], sizes: Mapping[Place, int | str], ranges: Mapping[str, Range]
) -> bool:
    allowed = {name: _samples(ranges.get(name, (1, None)), len(names)) for name in names}
    return holds_throughout(guard, sizes, allowed)


def _holds(guard: Guard, sizes: Mapping[Place, int | str], label: str, size: int) -> bool:
    return guard.holds(*at(guard, sizes, {label: size}))


def _samples(limits: Range, dims: int) -> list[int]:
    low, high = limits
    wanted = _SAMPLES if dims < 4 else _SAMPLES[::4]
    return sorted({max(low, size if high is None else min(high, size)) for size in wanted})


def intersect(left: Range, right: Range) -> Range:
    """The sizes that are in both ranges."""
    highs = [high for high in (left[1], right[1]) if high is not None]
    return max(left[0], right[0]), min(highs, default=None)
