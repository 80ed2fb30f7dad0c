"""What keeps the states of layers that share slots: how it is filled, taken back and handed to a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor.ir.program import TensorSpec
from tersor.ir.stepping import Slots, State

from .chunks import CHUNK, end_of_chunk, left_in_chunk


class SlotStore(ABC):
    """Base of the stores.  Slots of a row are numbered; those below what is filled hold its latest tokens, in order.

    Attributes:
        filled: how many slots of each row are filled.
        buffers: the states, by the name of their input.
    """

    def __init__(
        self,
        slots: Slots,
        inputs: Mapping[str, TensorSpec],
        rows: int,
        rollback: int,
        in_chunks: bool = False,
    ) -> None:
        """Empty, for ``rows`` rows at most.

        Args:
            inputs: those of the Program, by name.
            rollback: tokens that may be taken back after others have been appended.
            in_chunks: whether room is made, and slots move, where chunks begin: see :mod:`.chunks`.
        """
        self.slots, self._inputs, self._in_chunks = slots, inputs, in_chunks
        # Slots move by as many or a multiple.
        self._together = CHUNK if in_chunks else 1
        self.most_rows = rows
        # A query sees itself and what is before it in the window.
        self.kept = slots.window - 1 + rollback
        self.filled = [0] * rows
        self.buffers: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many slots a row may fill as things are."""

    @abstractmethod
    def reserve(self, new: int, rows: Sequence[int]) -> None:
        """Make room for ``new`` more tokens in some rows."""

    @abstractmethod
    def inputs(self, rows: slice, ahead: int) -> dict[str, Tensor]:
        """What a step over some rows is given; ``ahead`` as of ``KvCache.inputs``."""

    @abstractmethod
    def results(self, rows: slice) -> dict[str, Tensor]:
        """Where it writes its states."""

    @abstractmethod
    def read(self, row: int, state: State) -> Tensor:
        """What the filled slots of a row hold, ``[heads, filled, width]``."""

    @abstractmethod
    def hold(self, row: int, states: Mapping[str, Tensor]) -> None:
        """Let the filled slots of a row be as many as ``states``, ``[heads, filled, width]``, and hold these."""

    @abstractmethod
    def keep(self, row: int, written: int, kept: Sequence[int]) -> None:
        """Move ``kept`` (ascending) of the ``written`` tokens behind the filled slots to the slots next to these."""

    @abstractmethod
    def rollback(self, row: int, count: int) -> None:
        """Empty the last ``count`` filled slots of a row."""

    @abstractmethod
    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its place."""

    def add(self) -> None:
        """An empty row behind the others."""
        self.filled.append(0)

    def advance(self, row: int, count: int) -> None:
        """Count as filled the next ``count`` slots of a row."""
        self.filled[row] += count

    def loses(self, row: int, count: int, tokens: int) -> bool:
        """Whether without its last ``count`` of ``tokens`` a row would lack what its next token looks at."""
        window = self.slots.window
        return self.filled[row] - count < (min(tokens - count, window - 1) if window else 0)

    def _begun(self, row: int) -> int:
        """How many slots of a row were filled when its chunk began."""
        filled = self.filled[row]
        return filled + left_in_chunk(filled) - CHUNK if self._in_chunks else filled

    def _reach(self, row: int, new: int) -> int:
        """Up to which slot a row needs room for a step of ``new`` tokens."""
        filled = self.filled[row]
        return max(filled + new, end_of_chunk(filled)) if self._in_chunks else filled + new

    def _lengths(self, rows: slice, ahead: int) -> dict[str, Tensor]:
        return {self.slots.length: torch.tensor(self.filled[rows]) + ahead}

    def _allocate(self, first: int, slots: int) -> None:
        """Buffers ``[first, heads, slots, width]`` with what the present ones, no larger in any dim, hold."""
        for state in self.slots.states:
            spec = self._inputs[state.name]
            _, heads, _, width = spec.shape
            buffer = torch.zeros(first, int(heads), slots, int(width), dtype=spec.dtype)
            before = self.buffers.get(state.name)
            if before is not None:
                buffer[: before.shape[0], :, : before.shape[2]] = before
            self.buffers[state.name] = buffer
