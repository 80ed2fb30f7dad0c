"""What a caller may hand over for a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.ir.errors import InputError
from tersor.ir.program import TensorSpec


def tensor_arguments(
    specs: Sequence[TensorSpec], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with tensors for the inputs of ``specs``; None, and what no input is called, stay as they are.

    Raises:
        InputError: an input is neither a tensor nor numbers that one can be made of, or is given twice.
    """
    for spec, _ in zip(specs, args, strict=False):
        if spec.name in kwargs:
            raise InputError(f"input {spec.name!r} is given twice, by position and by name: leave one out")
    known = {spec.name: spec for spec in specs}
    named = [_tensor(spec, value) for spec, value in zip(specs, args, strict=False)]
    return [*named, *args[len(named) :]], {
        name: _tensor(known[name], value) if name in known else value for name, value in kwargs.items()
    }


def _tensor(spec: TensorSpec, value: Any) -> Tensor | None:
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        what = "on the meta device, and holds no numbers" if value.is_meta else f"{value.layout}"
        raise InputError(
            f"input {spec.name!r} is {what}: give a dense tensor, on a device that holds its numbers"
        )
    if value is None or isinstance(value, Tensor):
        return value
    try:
        # A reversed array has steps that no tensor may have.
        return torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        shape = ", ".join(map(str, spec.shape))
        dtype = str(spec.dtype).removeprefix("torch.")
        raise InputError(
            f"input {spec.name!r} is a {type(value).__name__} of which no tensor can be made "
            f"({' '.join(str(error).split())}): give a tensor, an array or lists of numbers, [{shape}] {dtype}"
        ) from error
