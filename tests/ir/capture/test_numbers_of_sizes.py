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
    assert capture(model, X).inputs[0].shape == (2, 6, 8)
    told = r"'batch' but the model fixes it to 2: a number is made of it at"
    with pytest.raises(CaptureError, match=told) as error:
        capture(model, X, {"x": {0: "batch"}})
    assert f"at {__file__}:" in str(error.value)
    assert f'"{name}": lambda windows' in str(error.value)


def test_a_quotient_in_whole_numbers_varies() -> None:
    model = Windows(lambda windows: windows.shape[0] // 2).eval()
    program = capture(model, X, {"x": {0: "batch"}})
    five = torch.randn(5, 6, 8)
    torch.testing.assert_close(program(five), model(five))


class Chunks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for part in range(x.shape[1] // 64):
            x = x + part
        return x * 2


def test_nothing_is_said_of_numbers_that_bound_a_size() -> None:
    program = capture(Chunks().eval(), X)
    assert program.inputs[0].shape == ("batch", "tokens", 8)
    assert program.ranges["tokens"] == (1, 63)
    assert not program.notes


def test_a_number_of_one_dim_is_not_blamed_for_another() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 2:
                x = x * 2
            return x / math.sqrt(len(x[0]))

    (rows, tokens) = capture(Both().eval(), X).notes["capture"]
    assert ("len(x[0])" in rows, "len(x[0])" in tokens) in ((True, False), (False, True))


def test_no_line_is_told_where_none_is_the_models() -> None:
    notes = capture(nn.GRU(8, 8, batch_first=True).eval(), X).notes["capture"]
    assert notes
    assert not any(".py:" in note for note in notes)
