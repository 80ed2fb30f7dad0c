"""Who guesses the tokens that the model then checks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tersor.ir.drafting import NO_ROWS, Drafting, DraftModel, Rows
from tersor.ir.program import Program

from ..contract import Method


@dataclass(frozen=True)
class Drafter(Method):
    """Base of the drafters; fills the slot of ``speculate``.  Guesses change how fast tokens come, never which.

    Attributes:
        reported: how many times as fast as plain decoding its paper found it, and where; empty where there is none.
    """

    reported: ClassVar[str] = ""

    @abstractmethod
    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        """Start on a new sequence; ``rows`` are its :meth:`models` at work on it, by their names."""

    def models(self, program: Program) -> Mapping[str, DraftModel]:
        """The models that it guesses with, by names of its own.

        Args:
            program: the one that checks, whose steps take no trees (see ``straight``).

        Raises:
            RefusedError: none can be made of it.
            InputError: a model that is named cannot be read, or has another vocabulary.
        """
        return {}

    def prepared(self, program: Program) -> Program:
        """The Program that checks, with what its steps are to have beside trees of tokens: by default itself.

        Raises:
            RefusedError: it cannot have that.
            InputError: a file that is named cannot be read, or does not fit.
        """
        return program

    def as_module(self, most: int) -> nn.Module | None:
        """Guesses as a function of the text alone, at most ``most``; None where they follow from more than that.

        Returns:
            a module of tensor operators that ``capture`` takes: from the tokens so far, int64 ``[n]``, to guesses,
            int64 ``[most]``, the next token first, and how many of them count, int64 ``[1]``.
        """
        return None


def confidence(logits: Tensor, token: int) -> float:
    """How likely a model that says ``logits [vocabulary]`` finds ``token``."""
    return float(torch.exp(logits[token] - torch.logsumexp(logits, 0)))


def chance_of_match(length: int) -> float:
    """How likely what followed a run of so many tokens follows it again: measured on prose, code and lists."""
    return 1 - 0.6 * 0.7 ** (length - 1)
