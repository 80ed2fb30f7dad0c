"""Layers whose every row has slots of its own, in one buffer for each state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from tersor.ir.boundary import add_input, add_output, new_dim
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import Size
from tersor.ir.stepping import Slots, State

from .layout import WHATS, Group


class RowGroup(Group):
    """States ``[batch, heads, capacity, width]``, which attention itself gives back with the new tokens behind."""

    def __init__(self, work: Program, batch: Size, window: int) -> None:
        self.capacity = new_dim(work, f"capacity_{window}" if window else "capacity")
        super().__init__(work, batch, window)

    def attend(self, g: Builder, number: int, values: Mapping[str, Any]) -> fx.Node:
        past = []
        for what in WHATS:
            fake = values[what].meta["val"]
            sizes = (self.batch, fake.shape[1], self.capacity, fake.shape[3])
            past.append(add_input(self.work, f"past_{what}_{number}", sizes, fake.dtype))
        step = self.step(g, values, past)
        output = g.item(step, 0)
        for place, what in enumerate(WHATS):
            result = add_output(self.work, g.item(step, place + 1), f"present_{what}_{number}")
            self.states.append(State(str(past[place].target), result))
        return output

    def slots(self) -> Slots:
        capacity = self.work.symbols[str(self.capacity)]
        return Slots(capacity, str(self.length.target), self.window, tuple(self.states))
