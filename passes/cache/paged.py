"""Pages that all rows share, as in PagedAttention (Kwon et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from tersor.ir.boundary import add_input, add_output, new_dim
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import Size
from tersor.ir.stepping import Pages, Slots, State

from .layout import WHATS, CacheLayout, Group

# Of larger ones a row of few tokens takes more memory than any is worth.
_LARGEST = 4096


@dataclass(frozen=True)
class Paged(CacheLayout):
    """Rows take pages as they grow from a pool that all share, and give them back; memory is that of their tokens.

    A table says which pages are a row's.  A windowed layer gives back the pages that are behind its window, so that
    layers of different windows have tables of their own.  Every step copies the pages that it reads, which the other
    layouts do not: this one is for many rows of different lengths.
    """

    name: ClassVar[str] = "paged"

    page: int = field(default=64, metadata={"help": "tokens of a page"})

    def __post_init__(self) -> None:
        if not 1 <= self.page <= _LARGEST:
            raise ValueError(f"page={self.page} is not within 1 and {_LARGEST}")

    def group(self, window: int) -> int:
        return window

    def begin(self, work: Program, batch: Size, window: int) -> Group:
        return _SharedPages(work, batch, window, self.page)


class _SharedPages(Group):
    """States ``[pages, heads, page, width]``, read through a table and written through it."""

    def __init__(self, work: Program, batch: Size, window: int, page: int) -> None:
        super().__init__(work, batch, window)
        self.page = page
        self.pages, self.blocks = (new_dim(work, self.called(name)) for name in ("pages", "blocks"))
        self.table = add_input(work, self.called("page_table"), (batch, self.blocks), torch.int64)

    def attend(self, g: Builder, number: int, values: Mapping[str, Any]) -> fx.Node:
        pools = []
        for what in WHATS:
            fake = values[what].meta["val"]
            sizes = (self.pages, fake.shape[1], self.page, fake.shape[3])
            pools.append(add_input(self.work, f"{what}_pages_{number}", sizes, fake.dtype))
        past = [g.op("read_pages", pool, self.table) for pool in pools]
        output = g.item(self.step(g, values, past), 0)
        for pool, what in zip(pools, WHATS, strict=True):
            written = g.op("write_pages", pool, values[what], self.table, self.length)
            result = add_output(self.work, written, f"present_{what}_pages_{number}")
            self.states.append(State(str(pool.target), result))
        return output

    def slots(self) -> Slots:
        pages, blocks = (self.work.symbols[str(dim)] for dim in (self.pages, self.blocks))
        kept = Pages(str(self.table.target), blocks, self.page)
        return Slots(pages, str(self.length.target), self.window, tuple(self.states), kept)
