"""From what a caller hands over to one tensor for every input, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .arrays import tensor_of
from .errors import InputError

if TYPE_CHECKING:
    from .program import TensorSpec


def bind_inputs(
    specs: Sequence[TensorSpec],
    ranges: Mapping[str, tuple[int, int | None]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    least: Mapping[str, str] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Match positional and named arguments, or one mapping such as a tokenizer's result, to ``specs``.

    An input is a tensor, a NumPy array, a number or nested lists of numbers.

    Args:
        ranges: smallest and largest size of every dimension that may vary.
        least: why a dimension may be no smaller, where the model itself takes less.
        fixed: arguments that are constants since the model was captured; they may be given as they were then.

    Raises:
        InputError: an input is missing, unknown, given twice, no numbers, of the wrong dtype, or of a size that is not
            taken; or an argument that was fixed is another.
    """
    if len(args) == 1 and isinstance(args[0], Mapping):
        kwargs, args = {**args[0], **kwargs}, ()
    if fixed:
        kwargs = _without_fixed(specs, args, kwargs, fixed)
    bound: dict[str, Tensor] = {}
    for spec, given in zip(specs, _matched(specs, args, kwargs), strict=True):
        value = _tensor(spec, given)
        if value.dtype.is_floating_point != spec.dtype.is_floating_point:
            raise InputError(f"input {spec.name!r} is {value.dtype}, the program takes {spec.dtype}")
        bound[spec.name] = value.to(spec.dtype)
    _check_sizes(specs, ranges, bound, least or {})
    return bound


def _without_fixed(
    specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any], fixed: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The named arguments that are no constants; those that are, must be what they were."""
    if len(args) > len(specs):
        raise InputError(
            f"{len(args)} positional inputs given, the program takes {len(specs)}: give {', '.join(fixed)}, fixed "
            "since the model was captured, by name, or leave it out"
        )
    for name, value in kwargs.items():
        if name not in fixed or value is None:
            continue
        number = value.item() if isinstance(value, np.generic) else value
        if not isinstance(number, bool | int | float | str) or number != fixed[name]:
            raise InputError(
                f"argument {name!r} is {value!r}: it was fixed at {fixed[name]!r} when the model was captured; capture "
                "it again with the other"
            )
    return {name: value for name, value in kwargs.items() if name not in fixed}


def _matched(specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What was given for each of ``specs``."""
    expected = ", ".join(f"{s.name} {_shape_text(s)} {str(s.dtype).removeprefix('torch.')}" for s in specs)
    if len(args) > len(specs):
        raise InputError(f"{len(args)} positional inputs given, the program takes {len(specs)}: {expected}")
    found: dict[str, Any] = {spec.name: value for spec, value in zip(specs, args, strict=False)}
    for name, value in kwargs.items():
        if name in found:
            raise InputError(f"input {name!r} is given twice, by position and by name: leave one out")
        if value is not None and name not in {spec.name for spec in specs}:
            raise InputError(f"unknown input {name!r}; the program takes: {expected}")
    found |= kwargs
    for spec in specs:
        if found.get(spec.name) is None:
            raise InputError(f"input {spec.name!r} is missing; the program takes: {expected}")
    return [found[spec.name] for spec in specs]


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            what = "on the meta device, and holds no numbers" if value.is_meta else f"{value.layout}"
            raise InputError(
                f"input {spec.name!r} is {what}: give a dense tensor, on a device that holds its numbers"
            )
        return value
    try:
        return tensor_of(value)
    except ValueError as error:
        dtype = str(spec.dtype).removeprefix("torch.")
        raise InputError(
            f"input {spec.name!r} is a {type(value).__name__} of which no tensor can be made "
            f"({error}): give a tensor, an array or lists of numbers, "
            f"{_shape_text(spec)} {dtype}"
        ) from error


def _check_sizes(
    specs: Sequence[TensorSpec],
    ranges: Mapping[str, tuple[int, int | None]],
    bound: Mapping[str, Tensor],
    least: Mapping[str, str],
) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        shape = list(bound[spec.name].shape)
        if len(shape) != len(spec.shape):
            raise InputError(f"input {spec.name!r} has shape {shape}, the program takes {_shape_text(spec)}")
        for size, want in zip(shape, spec.shape, strict=True):
            if isinstance(want, int):
                fits, known, hint = size == want, f"{want}", ""
            else:
                first, where = sizes.setdefault(want, (size, spec.name))
                fits, known = size == first, f"{want} = {first} as in {where!r}"
                hint = "; if the two may differ, capture the model with an example in which they do"
            if not fits:
                raise InputError(
                    f"input {spec.name!r} has shape {shape}: size {size} where the program takes {known}{hint}"
                )
    for name, (size, where) in sizes.items():
        low, high = ranges.get(name, (0, None))
        if size < low and name in least:
            raise InputError(
                f"input {where!r} has {name} = {size}; {low} to {high or 'any'} are taken: {least[name]}"
            )
        if size < low or (high is not None and size > high):
            raise InputError(f"input {where!r} has {name} = {size}; the model takes {low} to {high or 'any'}")


def _shape_text(spec: TensorSpec) -> str:
    return "[" + ", ".join(str(dim) for dim in spec.shape) + "]"
