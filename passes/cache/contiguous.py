"""One buffer for each layer, in which every token of the sequence has its slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program
from tersor.ir.shapes import Size

from .layout import CacheLayout
from .row_buffers import RowBuffers


@dataclass(frozen=True)
class Contiguous(CacheLayout):
    """Every layer keeps all tokens, in the order of the sequence."""

    name: ClassVar[str] = "contiguous"

    def group(self, window: int) -> int:
        return 0

    def begin(self, work: Program, batch: Size, window: int) -> RowBuffers:
        return RowBuffers(work, batch, window)
