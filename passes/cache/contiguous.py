"""One buffer for each layer, in which every token of the sequence has its slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .layout import CacheLayout


@dataclass(frozen=True)
class Contiguous(CacheLayout):
    """Every layer keeps all tokens, in the order of the sequence."""

    name: ClassVar[str] = "contiguous"

    def group(self, window: int) -> int:
        return 0
