"""Rows of an input that hold nothing but numbers which stand for no token: ``Program.fillers``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rows_of_fillers(value: Tensor, fillers: Sequence[int]) -> Tensor:
    """Bool ``[batch, ...]`` for ``value [batch, ..., tokens]``: whether a row is made of ``fillers`` alone."""
    known = torch.tensor(fillers, dtype=torch.int64, device=value.device)
    return torch.isin(value.to(torch.int64), known).all(-1)


def has_row_of(value: Tensor, sets: Sequence[Sequence[int]]) -> bool:
    """Whether a row is made of the numbers of one of ``sets`` alone."""
    return any(bool(rows_of_fillers(value, fillers).any()) for fillers in sets)


def runs_of(fillers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of all numbers that follow one another, ascending: 0, 1, 2, 7 are two runs."""
    runs: list[tuple[int, int]] = []
    for number in sorted(fillers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
