"""A size that the model makes a number of is fixed, and the line that makes it is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import CaptureError

X = torch.randn(2, 6, 8)


class Windows(nn.Module):
    def __init__(self, rows: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 3, 8) * 2
        return windows.reshape(self.rows(windows), 6, 8)


MAKERS: dict[str, Callable[[Tensor], Any]] = {
    "int": lambda windows: int(windows.shape[0] / 2),
    "len": lambda windows: len(windows) // 2,
    "float": lambda windows: round(float(windows.shape[0]) / 2),
    "log": lambda windows: 2 ** round(math.log2(windows.shape[0] // 2)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_line_is_told(name: str) -> None:
    model = Windows(MAKERS[name]).eval()
    program = capture(model, X)
    assert program.inputs[0].shape == (2, 6, 8)
    (note,) = (line for line in program.notes["capture"] if line.startswith("a number is made of a size"))
    assert f"at {__file__}:" in note
    assert f'"{name}": lambda windows' in note
    with pytest.raises(
        CaptureError, match=r"'batch' but the model fixes it to 2: .*is made of a size.*lambda"
    ):
        capture(model, X, {"x": {0: "batch"}})


def test_a_quotient_in_whole_numbers_varies() -> None:
    model = Windows(lambda windows: windows.shape[0] // 2).eval()
    program = capture(model, X, {"x": {0: "batch"}})
    five = torch.randn(5, 6, 8)
    torch.testing.assert_close(program(five), model(five))
