"""What every clean-up pass is; a file of this folder that defines one is all that a new one takes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from tersor.ir.program import Program

from ..contract import Pass, Promise, Site


@dataclass(frozen=True)
class Part(Pass):
    """Base: exact, and legal everywhere, so that only where it applies is in question.

    No part undoes what another does, so that all of them together come to an end.

    Attributes:
        grows_weights: it may add weights to compute less.  Such a part waits until the others find nothing, and so
            adds none for what they would have removed or joined.
    """

    family: ClassVar[str] = "cleanup"
    promise: ClassVar[Promise] = Promise.EXACT
    must_pay: ClassVar[bool] = False
    grows_weights: ClassVar[bool] = False

    @abstractmethod
    def legality(self, program: Program) -> list[Site]:
        """Where the part applies in ``program``, in graph order."""
