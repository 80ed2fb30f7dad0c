"""What a kind of weights is: how a matrix is stored, and what an operator that reads it becomes.

A kind is a file of this folder with one subclass of ``Kind``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir
from torch import Tensor

if TYPE_CHECKING:
    from ..emitter import Emitter


class Stored(ABC):
    """One weight as a kind keeps it.

    Attributes:
        rounds_activations: whether its product rounds what it is multiplied by to few bits.
    """

    rounds_activations: ClassVar[bool] = False

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What it takes in a file."""

    @abstractmethod
    def values(self) -> Tensor:
        """The float32 numbers that it stands for, in the shape of the weight."""

    def product(self, e: Emitter, name: str, x: ir.Value, bias: ir.Value | None) -> Any:
        """``x @ values.T + bias`` for ``x [..., in]`` and ``values [out, in]``; NotImplemented: as of any weight."""
        return NotImplemented

    def rows(self, e: Emitter, name: str, indices: ir.Value) -> Any:
        """``values[indices]``, ``[..., in]``; NotImplemented: as of any weight."""
        return NotImplemented

    def read(self, e: Emitter, name: str, weight: Tensor, view: Callable[[Tensor], Tensor]) -> ir.Value:
        """The weight, through a view of it, for an operator that takes it as it is, under a name of its own."""
        return e.initializer(name, view(weight))


class Kind(ABC):
    """A way of storing weights.

    Attributes:
        name: what the option calls it.
        portable: whether standard operators read it.
        own_layout: whether it keeps a weight as the Program does, and not always as ``[out, in]``.
        most_loss: by what share perplexity may differ before the kind is refused.
        mixed_with: the kind of some of the weights where that is so; None where it is refused at once.
        smooths: whether it stores weights of a Program whose products have inputs as even as can be.
    """

    name: ClassVar[str]
    portable: ClassVar[bool] = False
    own_layout: ClassVar[bool] = False
    most_loss: ClassVar[float] = 0.01
    mixed_with: ClassVar[str | None] = None
    smooths: ClassVar[bool] = False

    @property
    def of_even(self) -> Kind:
        """How it stores a weight whose input was smoothed."""
        return self

    @abstractmethod
    def store(self, weight: Tensor) -> Stored | None:
        """``weight``, float32 ``[out, in]`` (or as it is, in its own layout), as this kind keeps it.

        Returns:
            None where this kind has no form for it, and it stays as it is.
        """
