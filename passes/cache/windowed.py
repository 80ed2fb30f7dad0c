"""Buffers of windowed layers that never grow past their window and what is written between two moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program
from tersor.ir.shapes import Size

from .layout import CacheLayout
from .row_group import RowGroup


@dataclass(frozen=True)
class Windowed(CacheLayout):
    """Windowed layers keep their window only; the others keep all tokens.

    A windowed buffer fills from the front like any other; when it is full, the window at its end moves to its front.
    That costs a copy of the window once in as many tokens as the buffer has room beyond it, and in return its slots
    are in the order of the tokens: attention that knows nothing of rings works on it in place.
    """

    name: ClassVar[str] = "windowed"

    def group(self, window: int) -> int:
        return window

    def begin(self, work: Program, batch: Size, window: int) -> RowGroup:
        return RowGroup(work, batch, window)
