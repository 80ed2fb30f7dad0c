"""16 bits on disk: what is computed with is float32 again, of which ONNX Runtime makes one copy while it loads.

The CPU has no products of 16 bit floats that would be faster than those of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir
import torch
from torch import Tensor

from .kind import Kind, Stored

if TYPE_CHECKING:
    from ..emitter import Emitter


@dataclass(frozen=True)
class Rounded(Stored):
    """Numbers of 16 bits.

    Attributes:
        held: as the file holds it.
        used: as sessions of this process do: several of them share it.
    """

    held: Tensor
    used: Tensor

    @property
    def nbytes(self) -> int:
        return self.held.nbytes

    def values(self) -> Tensor:
        return self.used

    def read(self, e: Emitter, name: str, weight: Tensor, view: Callable[[Tensor], Tensor]) -> ir.Value:
        if e.for_session:
            return e.initializer(name, view(self.used))
        return e.shared_value(
            ("rounded", name), lambda: e.cast(e.initializer(name, view(self.held)), torch.float32)
        )


class _Half(Kind):
    dtype: ClassVar[torch.dtype]
    portable: ClassVar[bool] = True
    own_layout: ClassVar[bool] = True

    def store(self, weight: Tensor) -> Rounded | None:
        held = weight.detach().to(self.dtype)
        used = held.float()
        # Beyond the largest number of 16 bits there is infinity only.
        return Rounded(held, used) if bool(used.isfinite().all()) else None


class Float16(_Half):
    """float16 on disk."""

    name: ClassVar[str] = "fp16"
    dtype: ClassVar[torch.dtype] = torch.float16


class BFloat16(_Half):
    """bfloat16 on disk."""

    name: ClassVar[str] = "bf16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16
