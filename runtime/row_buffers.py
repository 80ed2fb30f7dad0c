"""States of rows that each have slots of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor.ir.program import TensorSpec
from tersor.ir.stepping import Slots, State

from .chunks import whole_blocks
from .slot_store import SlotStore


class RowBuffers(SlotStore):
    """Buffers ``[rows, heads, slots, width]``.

    A buffer whose layers look at all tokens doubles when it is full.  One of a window has a fixed number of slots:
    when a step of a row would not fit, what this may still look at moves to its front.
    """

    def __init__(
        self,
        slots: Slots,
        inputs: Mapping[str, TensorSpec],
        rows: int,
        rollback: int,
        *,
        first: int,
        longest_step: int,
        in_chunks: bool = False,
    ) -> None:
        """Empty.

        Args:
            first: slots that a buffer without a window begins with.  longest_step: tokens that one step may append.
        """
        super().__init__(slots, inputs, rows, rollback, in_chunks)
        # What may still be looked at, and of a chunk what is behind it.
        self._allocate(rows, self.kept + self._together + longest_step if slots.window else first)

    @property
    def capacity(self) -> int:
        return int(self.buffers[self.slots.states[0].name].shape[2])

    def reserve(self, new: int, rows: Sequence[int]) -> None:
        for row in rows:
            needed = self._reach(row, new)
            if needed <= self.capacity:
                continue
            if self.slots.window:
                self._move_to_front(row)
            else:
                self._allocate(self.most_rows, max(whole_blocks(needed), 2 * self.capacity))

    def inputs(self, rows: slice, ahead: int) -> dict[str, Tensor]:
        given = {name: buffer[rows] for name, buffer in self.buffers.items()}
        return given | self._lengths(rows, ahead)

    def results(self, rows: slice) -> dict[str, Tensor]:
        return {state.result: self.buffers[state.name][rows] for state in self.slots.states}

    def read(self, row: int, state: State) -> Tensor:
        return self.buffers[state.name][row, :, : self.filled[row]]

    def hold(self, row: int, states: Mapping[str, Tensor]) -> None:
        (filled,) = {states[state.name].shape[1] for state in self.slots.states}
        self.filled[row] = 0
        if filled > self.capacity:
            self._allocate(self.most_rows, max(filled, 2 * self.capacity))
        for state in self.slots.states:
            self.buffers[state.name][row, :, :filled] = states[state.name]
        self.filled[row] = filled

    def keep(self, row: int, written: int, kept: Sequence[int]) -> None:
        index, start = torch.tensor(kept), self.filled[row]
        for state in self.slots.states:
            tail = self.buffers[state.name][row, :, start : start + written]
            tail[:, : len(kept)] = tail[:, index]

    def rollback(self, row: int, count: int) -> None:
        self.filled[row] -= count

    def remove(self, row: int) -> None:
        last = len(self.filled) - 1
        count = self.filled.pop()
        if row != last:
            for state in self.slots.states:
                buffer = self.buffers[state.name]
                buffer[row, :, :count] = buffer[last, :, :count]
            self.filled[row] = count

    def _move_to_front(self, row: int) -> None:
        count = self.filled[row]
        passed = max(0, count - self.kept) // self._together * self._together
        for state in self.slots.states:
            slots = self.buffers[state.name][row]
            slots[:, : count - passed] = slots[:, passed:count].clone()
        self.filled[row] = count - passed
