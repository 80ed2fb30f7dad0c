"""States of rows that take pages from one pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor.ir.program import TensorSpec
from tersor.ir.stepping import Pages, Slots, State

from .chunks import whole_blocks
from .slot_store import SlotStore


class PagePool(SlotStore):
    """Pools ``[pages, heads, page, width]``, and for every row the pages that are its own.

    A row takes pages as it grows.  It gives back those behind its window, those that it no longer fills when tokens are
    taken back, and all when it is removed.  Where none is free, the pool doubles; a page keeps its number.
    """

    def __init__(
        self,
        slots: Slots,
        inputs: Mapping[str, TensorSpec],
        rows: int,
        rollback: int,
        *,
        first: int,
        in_chunks: bool = False,
    ) -> None:
        """Empty.

        Args:
            first: slots of all rows together that the pool begins with.
        """
        super().__init__(slots, inputs, rows, rollback, in_chunks)
        assert slots.pages is not None
        self._pages: Pages = slots.pages
        self._table: list[list[int]] = [[] for _ in range(rows)]
        # The page on top is the next to be taken.
        self._free: list[int] = []
        self._grow(max(1, self._pages.needed(first)))

    @property
    def pages(self) -> int:
        """How many pages the pool has."""
        return int(self.buffers[self.slots.states[0].name].shape[0])

    @property
    def free(self) -> int:
        """How many of them are no row's."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        return self.pages * self._pages.size

    def reserve(self, new: int, rows: Sequence[int]) -> None:
        for row in rows:
            own = self._table[row]
            if self.slots.window:
                self._give_back(row)
            missing = self._pages.needed(self._reach(row, new)) - len(own)
            if missing > len(self._free):
                self._grow(max(2 * self.pages, self.pages + missing - len(self._free)))
            own += [self._free.pop() for _ in range(missing)]

    def inputs(self, rows: slice, ahead: int) -> dict[str, Tensor]:
        own = self._table[rows]
        # An input has at least one page; what fills up shorter rows is never seen.
        pages = max([1, *map(len, own)])
        if self._in_chunks:
            pages = self._pages.needed(whole_blocks(pages * self._pages.size))
        table = torch.tensor([row + [0] * (pages - len(row)) for row in own], dtype=torch.int64)
        return {**self.buffers, self._pages.table: table, **self._lengths(rows, ahead)}

    def results(self, rows: slice) -> dict[str, Tensor]:
        return {state.result: self.buffers[state.name] for state in self.slots.states}

    def read(self, row: int, state: State) -> Tensor:
        """A copy, unlike that of row buffers."""
        pages, slots = self._places(row, range(self.filled[row]))
        return self.buffers[state.name][pages, :, slots].transpose(0, 1)

    def hold(self, row: int, states: Mapping[str, Tensor]) -> None:
        (filled,) = {states[state.name].shape[1] for state in self.slots.states}
        self.rollback(row, self.filled[row])
        self.reserve(filled, (row,))
        pages, slots = self._places(row, range(filled))
        for state in self.slots.states:
            self.buffers[state.name][pages, :, slots] = states[state.name].transpose(0, 1)
        self.filled[row] = filled

    def keep(self, row: int, written: int, kept: Sequence[int]) -> None:
        start = self.filled[row]
        sources = self._places(row, [start + token for token in kept])
        targets = self._places(row, range(start, start + len(kept)))
        for state in self.slots.states:
            pool = self.buffers[state.name]
            pool[targets[0], :, targets[1]] = pool[sources[0], :, sources[1]]

    def rollback(self, row: int, count: int) -> None:
        self.filled[row] -= count
        own, left = self._table[row], self._pages.needed(self.filled[row])
        self._free += reversed(own[left:])
        del own[left:]

    def add(self) -> None:
        super().add()
        self._table.append([])

    def remove(self, row: int) -> None:
        self.rollback(row, self.filled[row])
        self._table[row], self.filled[row] = self._table[-1], self.filled[-1]
        del self._table[-1], self.filled[-1]

    def _give_back(self, row: int) -> None:
        """The pages behind the window of a row, several at once where slots move by whole chunks."""
        size, own = self._pages.size, self._table[row]
        together = math.lcm(size, self._together)
        passed = self._begun(row) - self.kept
        count = max(0, passed) // together * together
        self._free += own[: count // size]
        del own[: count // size]
        self.filled[row] -= count

    def _places(self, row: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The page of every slot of a row, and which of the page's it is."""
        slots = torch.tensor(numbers, dtype=torch.int64)
        size = self._pages.size
        return torch.tensor(self._table[row], dtype=torch.int64)[slots // size], slots % size

    def _grow(self, pages: int) -> None:
        """A pool of ``pages`` pages, the new ones free."""
        before = self.pages if self.buffers else 0
        self._allocate(pages, self._pages.size)
        self._free = [*reversed(range(before, pages)), *self._free]
