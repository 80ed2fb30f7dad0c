"""The keys and values of earlier tokens, in stores that steps write into, and what counts as filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from tersor.ir.program import TensorSpec
from tersor.ir.stepping import Stepping

from .chunks import left_in_chunk
from .page_pool import PagePool
from .row_buffers import RowBuffers
from .slot_store import SlotStore

# Slots that a buffer without a window, or a pool, begins with; it doubles from there.
_FIRST_CAPACITY = 256


class KvCache:
    """Every state of a Program that is run in steps, for ``rows`` sequences of different lengths.

    What layers share slots is kept by one store: ``RowBuffers``, or a ``PagePool`` where rows share pages.

    Attributes:
        rows: how many sequences there are at present.
        most_rows: how many there were to begin with, and may be.
        lengths: how many tokens each of them holds.
    """

    def __init__(
        self,
        stepping: Stepping,
        inputs: Sequence[TensorSpec],
        rows: int,
        *,
        longest_step: int = 256,
        longest_rollback: int = 64,
        in_chunks: bool = False,
    ) -> None:
        """Empty.

        Args:
            inputs: those of the Program.
            longest_step: tokens that one step may append.
            longest_rollback: tokens of the last step that may be taken back after later ones.
            in_chunks: whether what a token gives must not depend on which are run beside it: see :mod:`.chunks`.
        """
        self.rows = self.most_rows = rows
        self.longest_step = longest_step
        self.lengths = [0] * rows
        specs = {spec.name: spec for spec in inputs}
        self._stores: dict[str, SlotStore] = {}
        for slots in stepping.slots:
            if slots.pages is None:
                self._stores[slots.length] = RowBuffers(
                    slots,
                    specs,
                    rows,
                    longest_rollback,
                    first=_FIRST_CAPACITY,
                    longest_step=longest_step,
                    in_chunks=in_chunks,
                )
            else:
                self._stores[slots.length] = PagePool(
                    slots, specs, rows, longest_rollback, first=_FIRST_CAPACITY, in_chunks=in_chunks
                )

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The states, ``[rows, heads, slots, width]`` or pools, by the name of their input."""
        return {name: buffer for store in self._stores.values() for name, buffer in store.buffers.items()}

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
        for store in self._stores.values():
            store.reserve(new, range(self.rows) if row is None else (row,))

    def left_in_chunk(self) -> int:
        """How many tokens a step may have that must not reach past the chunk of any row."""
        return min(left_in_chunk(count) for store in self._stores.values() for count in store.filled)

    def inputs(self, row: int | None = None, ahead: int = 0) -> dict[str, Tensor]:
        """What a step is given: every state, and how many of its slots are filled; of one row or of all.

        Args:
            ahead: tokens that were written behind the filled slots and are to be read as if they counted.
        """
        chosen = slice(self.rows) if row is None else slice(row, row + 1)
        given: dict[str, Tensor] = {}
        for store in self._stores.values():
            given |= store.inputs(chosen, ahead)
        return given

    def results(self, row: int | None = None) -> dict[str, Tensor]:
        """Where a step is to write its states: over those that it was given."""
        chosen = slice(self.rows) if row is None else slice(row, row + 1)
        into: dict[str, Tensor] = {}
        for store in self._stores.values():
            into |= store.results(chosen)
        return into

    def states(self, row: int) -> dict[str, Tensor]:
        """What the filled slots of a row hold: ``[heads, filled, width]`` by the name of the input.

        Of row buffers a view, of pages a copy.
        """
        return {
            state.name: store.read(row, state)
            for store in self._stores.values()
            for state in store.slots.states
        }

    def hold(self, row: int, tokens: int, states: Mapping[str, Tensor]) -> None:
        """Let a row be one of so many tokens, of which its slots hold these ``states``: all of them, or some.

        Args:
            states: ``[heads, filled, width]``, as many slots for all that lie in the same.
        """
        for store in self._stores.values():
            store.hold(row, states)
        self.lengths[row] = tokens

    def advance(self, counts: Sequence[int], row: int | None = None) -> None:
        """Count as filled what a step has written: ``counts`` tokens of each row, or of one."""
        for r, count in zip(range(self.rows) if row is None else (row,), counts, strict=True):
            self.lengths[r] += count
            for store in self._stores.values():
                store.advance(r, count)

    def remove(self, row: int) -> None:
        """Forget a row; the last one takes its place."""
        self.rows -= 1
        for store in self._stores.values():
            store.remove(row)
        self.lengths[row] = self.lengths[-1]
        del self.lengths[-1]

    def add(self) -> int:
        """An empty row behind the others, where one was removed; which it is.

        Raises:
            ValueError: there was none.
        """
        if self.rows == self.most_rows:
            raise ValueError(f"there is room for {self.rows} rows")
        self.rows += 1
        self.lengths.append(0)
        for store in self._stores.values():
            store.add()
        return self.rows - 1

    def rollback(self, row: int, count: int) -> None:
        """Forget the last ``count`` tokens of a row.

        Raises:
            ValueError: there are not as many, or a window has moved past what would be looked at then.
        """
        tokens = self.lengths[row]
        if count > tokens:
            raise ValueError(f"row {row} has {tokens} tokens, of which {count} cannot be taken back")
        for store in self._stores.values():
            if store.loses(row, count, tokens):
                raise ValueError(
                    f"{count} tokens back, a window of {store.slots.window} is no longer all there"
                )
        for store in self._stores.values():
            store.rollback(row, count)
        self.lengths[row] -= count

    def commit(self, row: int, written: int, kept: Sequence[int]) -> None:
        """Count as filled some of the ``written`` tokens that a step has put behind the filled slots of a row.

        Args:
            kept: which, ascending; they move to the slots next to those filled before.
        """
        if list(kept) != list(range(len(kept))):
            for store in self._stores.values():
                store.keep(row, written, kept)
        self.advance([len(kept)], row)
