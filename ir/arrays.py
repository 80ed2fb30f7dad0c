"""Arrays and numbers that are given where tensors are meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(value: Any) -> Tensor:
    """An array, a number or nested lists of numbers as a tensor.

    Raises:
        ValueError: none can be made of it.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError("what it masks would count: fill it, and give the mask as an input")
    try:
        # A reversed array has steps that no tensor may have.
        return torch.as_tensor(value.copy() if isinstance(value, np.ndarray) else value)
    except (TypeError, RuntimeError, OverflowError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error
