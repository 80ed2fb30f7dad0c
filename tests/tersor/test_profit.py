"""Profit lowers each Program once, and its ratio is after over before."""

from __future__ import annotations

from typing import Any

import torch

from tersor import Program, capture
from tersor.codegen.torch import TorchTarget
from tersor.profit import Profit


class Products(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.weight = count, torch.nn.Parameter(torch.randn(256, 256) / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.count):
            x = x @ self.weight
        return x


class Counting(TorchTarget):
    """Remembers what it lowered."""

    def __init__(self) -> None:
        self.lowered: list[Program] = []

    def lower(self, program: Program, **options: Any) -> Any:
        self.lowered.append(program)
        return super().lower(program, **options)


def test_less_work_is_a_ratio_below_one_and_nothing_is_lowered_twice() -> None:
    x = torch.randn(512, 256)
    many, one = (capture(Products(count), x) for count in (30, 1))
    target = Counting()
    profit = Profit(target, {}, {"x": x})
    assert profit(many, one) < 0.8
    assert profit(one, many) > 1.2
    assert target.lowered == [many, one]
    assert [timing.pairs > 0 for timing in profit.timings] == [True, True]
