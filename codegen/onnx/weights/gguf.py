"""The blocks that a model's weights were dequantised from, as they are: nothing is rounded a second time.

Q8_0, Q5_0 and Q6_K are symmetric and fit 8 bits, Q4_0 4 bits.  Q4_K and Q5_K have a minimum too; ONNX Runtime has a
floating zero point for it, at a fiftieth of the speed.  So `scale * q - minimum` is `scale * (q - 8)`, a symmetric
product, plus `8 * scale - minimum`, which multiplies the sums of the activations of every block.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .blocks import Blocks
from .grids import on_grid
from .kind import Kind


class Gguf(Kind):
    """The blocks of the GGUF file that the weights came from, found again in their values."""

    name: ClassVar[str] = "gguf"

    def store(self, weight: Tensor) -> Blocks | None:
        return on_grid(weight)
