"""A lowered program ready to be called: arguments in, the model's own output structure out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tersor.codegen.target import Executable
from tersor.ir.binding import bind_inputs
from tersor.ir.structure import Structure


@dataclass(frozen=True)
class Session:
    """An Executable with what its flat tensors mean.

    Attributes:
        executable: what runs.
        structure: the nesting of the model's output.
        ranges: smallest and largest size of every dimension that may vary.
        least: why a dimension may be no smaller, where the model itself takes less.
        fixed: arguments that are no tensors, as they were when the model was captured.
    """

    executable: Executable
    structure: Structure
    ranges: Mapping[str, tuple[int, int | None]]
    least: Mapping[str, str] | None = None
    fixed: Mapping[str, Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on positional or named inputs, or on one mapping such as a tokenizer's result.

        An input is a tensor, a NumPy array, a number or nested lists of numbers.

        Raises:
            InputError: an input is missing, unknown, no numbers, of the wrong dtype, or of a size the model does not
                take.
        """
        return self.structure.pack(self.executable.run(self.bind(*args, **kwargs)))

    def run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Flat outputs for inputs that :meth:`bind` returned."""
        return self.executable.run(inputs)

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Match arguments to input names and check them."""
        return bind_inputs(self.executable.inputs, self.ranges, args, kwargs, self.least, self.fixed)
