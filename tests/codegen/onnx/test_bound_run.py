"""What is bound is what was given, wherever it lies and however."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.capture import capture


class Doubled(nn.Module):
    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return 2.0 * x, state + 1.0


@pytest.mark.parametrize("kind", ["expanded", "turned", "contiguous"])
def test_an_input_that_is_not_contiguous_is_never_the_one_before(kind: str) -> None:
    """Memory of the one before is given to the next: they lie in one place, and are not the same."""
    example = {"x": torch.zeros(2, 3), "state": torch.zeros(4)}
    executable = OnnxExecutable.of(capture(Doubled(), example, dynamic={}), threads=1)
    state = torch.zeros(4)
    for number in range(300):
        value = float(number)
        x = {
            "expanded": lambda value=value: torch.full((3,), value).expand(2, -1),
            "turned": lambda value=value: torch.full((3, 2), value).t(),
            "contiguous": lambda value=value: torch.full((2, 3), value),
        }[kind]()
        names = [spec.name for spec in executable.outputs]
        doubled, _ = executable.run_into({"x": x, "state": state}, {names[1]: state})
        del x
        assert (doubled == 2 * value).all()
    assert (state == 300).all()
