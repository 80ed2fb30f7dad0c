"""The keys and values of earlier tokens, in buffers that steps write into, and what counts as filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor.ir.program import TensorSpec
from tersor.ir.stepping import Slots, Stepping

# Slots that a buffer without a window begins with; it doubles from there.
_FIRST_CAPACITY = 256


class KvCache:
    """Buffers of every state of a Program that is run in steps, for ``rows`` sequences of different lengths.

    A buffer whose layers look at all tokens doubles when it is full.  One of a window has a fixed number of slots:
    when a step would not fit, what may still be looked at moves to its front.

    Attributes:
        rows: how many sequences there are at present.
        lengths: how many tokens each of them holds.
        buffers: the states, ``[rows, heads, slots, width]`` by the name of their input.
    """

    def __init__(
        self,
        stepping: Stepping,
        inputs: Sequence[TensorSpec],
        rows: int,
        *,
        longest_step: int = 512,
        longest_rollback: int = 64,
    ) -> None:
        """Empty.

        Args:
            inputs: those of the Program.
            longest_step: tokens that one step may append.
            longest_rollback: tokens of the last step that may be taken back after later ones.
        """
        self._stepping, self._inputs = stepping, {spec.name: spec for spec in inputs}
        self.rows = self._most_rows = rows
        self.longest_step, self._rollback = longest_step, longest_rollback
        self.lengths = [0] * rows
        self._filled = {slots.length: [0] * rows for slots in stepping.slots}
        self.buffers: dict[str, Tensor] = {}
        for slots in stepping.slots:
            capacity = self._kept(slots) + longest_step if slots.window else _FIRST_CAPACITY
            self._allocate(slots, capacity)

    def capacity(self, slots: Slots) -> int:
        """How many slots the buffers of a group have."""
        return int(self.buffers[slots.states[0].name].shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def reserve(self, new: int, row: int | None = None) -> None:
        """Make room for ``new`` more tokens in every row, or in one."""
        if new > self.longest_step:
            raise ValueError(
                f"a step of {new} tokens is longer than the {self.longest_step} that there is room for"
            )
        rows = range(self.rows) if row is None else (row,)
        for slots in self._stepping.slots:
            filled = self._filled[slots.length]
            capacity = self.capacity(slots)
            if max(filled[r] for r in rows) + new <= capacity:
                continue
            if slots.window:
                self._move_to_front(slots)
            else:
                wanted = max(filled) + new
                self._allocate(slots, max(wanted, 2 * capacity))

    def inputs(self, row: int | None = None, ahead: int = 0) -> dict[str, Tensor]:
        """What a step is given: every state, and how many of its slots are filled; of one row or of all.

        Args:
            ahead: tokens that were written behind the filled slots and are to be read as if they counted.
        """
        chosen = slice(self.rows) if row is None else slice(row, row + 1)
        given = {name: buffer[chosen] for name, buffer in self.buffers.items()}
        given |= {name: torch.tensor(filled[chosen]) + ahead for name, filled in self._filled.items()}
        return given

    def results(self, row: int | None = None) -> dict[str, Tensor]:
        """Where a step is to write its states: over those that it was given."""
        chosen = slice(self.rows) if row is None else slice(row, row + 1)
        states = (state for slots in self._stepping.slots for state in slots.states)
        return {state.result: self.buffers[state.name][chosen] for state in states}

    def states(self, row: int) -> dict[str, Tensor]:
        """What the filled slots of a row hold: ``[heads, filled, width]`` by the name of the input, not copied."""
        return {
            state.name: self.buffers[state.name][row, :, : self._filled[slots.length][row]]
            for slots in self._stepping.slots
            for state in slots.states
        }

    def hold(self, row: int, tokens: int, states: Mapping[str, Tensor]) -> None:
        """Let a row be one of so many tokens, of which its slots hold these ``states``: all of them, or some.

        Args:
            states: ``[heads, filled, width]``, as many slots for all that lie in the same.
        """
        for slots in self._stepping.slots:
            (filled,) = {states[state.name].shape[1] for state in slots.states}
            self._filled[slots.length][row] = 0
            if filled > self.capacity(slots):
                self._allocate(slots, max(filled, 2 * self.capacity(slots)))
            for state in slots.states:
                self.buffers[state.name][row, :, :filled] = states[state.name]
            self._filled[slots.length][row] = filled
        self.lengths[row] = tokens

    def advance(self, counts: Sequence[int], row: int | None = None) -> None:
        """Count as filled what a step has written: ``counts`` tokens of each row, or of one."""
        for r, count in zip(range(self.rows) if row is None else (row,), counts, strict=True):
            self.lengths[r] += count
            for filled in self._filled.values():
                filled[r] += count

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        self.rows -= 1
        last = self.rows
        for slots in self._stepping.slots:
            filled = self._filled[slots.length]
            if row != last:
                for state in slots.states:
                    buffer = self.buffers[state.name]
                    buffer[row, :, : filled[last]] = buffer[last, :, : filled[last]]
            filled[row] = filled[last]
            del filled[last]
        self.lengths[row] = self.lengths[last]
        del self.lengths[last]

    def add(self) -> int:
        """An empty row behind the others, where one was removed; which it is.

        Raises:
            ValueError: there was none.
        """
        if self.rows == self._most_rows:
            raise ValueError(f"there is room for {self.rows} rows")
        self.rows += 1
        self.lengths.append(0)
        for filled in self._filled.values():
            filled.append(0)
        return self.rows - 1

    def rollback(self, row: int, count: int) -> None:
        """Forget the last ``count`` tokens of a row.

        Raises:
            ValueError: there are not as many, or a window has moved past what would be looked at then.
        """
        if count > self.lengths[row]:
            raise ValueError(
                f"row {row} has {self.lengths[row]} tokens, of which {count} cannot be taken back"
            )
        for slots in self._stepping.slots:
            left = self._filled[slots.length][row] - count
            needed = min(self.lengths[row] - count, slots.window - 1) if slots.window else 0
            if left < needed:
                raise ValueError(f"{count} tokens back, a window of {slots.window} is no longer all there")
        self.advance([-count], row)

    def commit(self, row: int, written: int, kept: Sequence[int]) -> None:
        """Count as filled some of the ``written`` tokens that a step has put behind the filled slots of a row.

        Args:
            kept: which, ascending; they move to the slots next to those filled before.
        """
        if list(kept) != list(range(len(kept))):
            index = torch.tensor(kept)
            for slots in self._stepping.slots:
                start = self._filled[slots.length][row]
                for state in slots.states:
                    tail = self.buffers[state.name][row, :, start : start + written]
                    tail[:, : len(kept)] = tail[:, index]
        self.advance([len(kept)], row)

    def _kept(self, slots: Slots) -> int:
        # A query sees itself and what is before it in the window.
        return slots.window - 1 + self._rollback

    def _move_to_front(self, slots: Slots) -> None:
        filled, kept = self._filled[slots.length], self._kept(slots)
        for row, count in enumerate(filled):
            if count > kept:
                for state in slots.states:
                    rows = self.buffers[state.name][row]
                    rows[:, :kept] = rows[:, count - kept : count].clone()
                filled[row] = kept

    def _allocate(self, slots: Slots, capacity: int) -> None:
        """Buffers of ``capacity`` slots, with what the present ones hold."""
        for state in slots.states:
            spec = self._inputs[state.name]
            _, heads, _, width = spec.shape
            buffer = torch.zeros(self._most_rows, int(heads), capacity, int(width), dtype=spec.dtype)
            before = self.buffers.get(state.name)
            if before is not None:
                buffer[:, :, : before.shape[2]] = before
            self.buffers[state.name] = buffer
