"""One buffer for each layer, in which every token of the sequence has its slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program
from tersor.ir.shapes import Size

from .layout import CacheLayout
from .row_group import RowGroup


@dataclass(frozen=True)
class Contiguous(CacheLayout):
    """Every layer keeps all tokens, in the order of the sequence."""

    name: ClassVar[str] = "contiguous"

    def group(self, window: int) -> int:
        return 0

    def begin(self, work: Program, batch: Size, window: int) -> RowGroup:
        return RowGroup(work, batch, window)
