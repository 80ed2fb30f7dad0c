"""Where a cache keeps the tokens of layers that look back by different distances."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ..contract import Method


@dataclass(frozen=True)
class CacheLayout(Method):
    """Base of the layouts.  Layers whose groups are equal share slots, and so one capacity and one length."""

    @abstractmethod
    def group(self, window: int) -> int:
        """Which layers share slots with one that looks ``window`` tokens back (0: at all), as the window they keep."""
