"""Rows of an input that hold nothing but numbers which stand for no token: ``Program.fillers``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rows_of_fillers(value: Tensor, fillers: Sequence[int]) -> Tensor:
    """Bool ``[batch, ...]`` for ``value [batch, ..., tokens]``: whether a row is made of ``fillers`` alone."""
    return torch.stack([value == filler for filler in fillers]).any(0).all(-1)
