"""Where a cache keeps the tokens of layers that look back by different distances."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tersor.ir.boundary import add_input
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import Size
from tersor.ir.stepping import Slots, State

from ..contract import Method

WHATS = ("key", "value")


@dataclass(frozen=True)
class CacheLayout(Method):
    """Base of the layouts.  Layers whose groups are equal share slots, and so one capacity and one length."""

    @abstractmethod
    def group(self, window: int) -> int:
        """Which layers share slots with one that looks ``window`` tokens back (0: at all), as the window they keep."""

    @abstractmethod
    def begin(self, work: Program, batch: Size, window: int) -> Group:
        """How the layers of a group keep their tokens, with the inputs that all of them read added to ``work``."""


class Group(ABC):
    """Layers that share slots, while their attention is being rewritten."""

    def __init__(self, work: Program, batch: Size, window: int) -> None:
        self.work, self.batch, self.window = work, batch, window
        self.states: list[State] = []
        self.length = add_input(work, self.called("past_length"), (batch,), torch.int64)

    def called(self, name: str) -> str:
        """What ``name`` is called in this group."""
        return f"{name}_{self.window}" if self.window else name

    @abstractmethod
    def attend(self, g: Builder, number: int, values: Mapping[str, Any]) -> fx.Node:
        """Write attention ``number``, whose arguments are ``values``, over earlier tokens; what it gives."""

    @abstractmethod
    def slots(self) -> Slots:
        """What drives the layers that were rewritten."""

    def step(self, g: Builder, values: Mapping[str, Any], past: list[fx.Node]) -> fx.Node:
        """``cached_attention`` with the operands of an attention, over ``past`` keys and values."""
        return g.op(
            "cached_attention", values["query"], values["key"], values["value"], *past, self.length,
            None, None, values["sinks"],
            scale=values["scale"], window=values["window"], softcap=values["softcap"],
        )  # fmt: skip
