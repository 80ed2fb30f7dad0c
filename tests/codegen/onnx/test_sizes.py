"""Arithmetic on sizes is the same in Python, in a saved Program and in ONNX, at every size that the Program takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.archive import load, save
from tersor.ir.capture import capture
from tersor.ir.errors import LoweringError
from tersor.ir.verifier import verify


class Sized(nn.Module):
    """``[batch, tokens, 4]`` times, or cut to, what ``size`` makes of the tokens."""

    def __init__(self, size: Callable[[Any], Any], *, cut: bool = False) -> None:
        super().__init__()
        self.size, self.cut = size, cut

    def forward(self, x: Tensor) -> Tensor:
        size = self.size(x.shape[1])
        return x[:, :size] if self.cut else x * size


SCALES = {
    "root": lambda n: n**0.5,
    "inverse root": lambda n: n**-0.5,
    "square": lambda n: n**2,
    "power of two": lambda n: 2 ** (n // 8),
    "exponential": lambda n: 1.01**n,
    "torch's root": lambda n: torch._sym_sqrt(n),
    "shifts": lambda n: (n >> 1) + (n << 2),
    "distance": lambda n: abs(12 - n),
    "rounded": lambda n: round(n / 4),
    "remainder of a negative": lambda n: (3 - n) % 4,
    "floor of a negative": lambda n: (3 - n) // 4,
    "largest": lambda n: torch.sym_max(n, 20),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_factor_made_of_a_size(name: str, tmp_path: Path) -> None:
    model = Sized(SCALES[name])
    program = capture(model, {"x": torch.randn(2, 10, 4)})
    verify(program)
    save(program, tmp_path / "program")
    loaded = load(tmp_path / "program")
    assert str(loaded) == str(program)
    executable = OnnxExecutable.of(program, ops="portable", threads=1)
    for tokens in (1, 2, 6, 10, 14, 31, 49):
        x = torch.randn(3, tokens, 4)
        for (got,) in (program.run({"x": x}), loaded.run({"x": x}), executable.run({"x": x})):
            torch.testing.assert_close(got, model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "size",
    [
        lambda n: int(n**0.5),
        lambda n: math.floor(n * 0.7),
        lambda n: math.ceil(n * 0.9),
        lambda n: n // 2 + 1,
    ],
)
def test_a_length_made_of_a_size_is_exact(size: Any) -> None:
    model = Sized(size, cut=True)
    program = capture(model, {"x": torch.randn(2, 10, 4)})
    low, high = program.ranges["tokens"]
    executable = OnnxExecutable.of(program, ops="portable", threads=1)
    for tokens in range(low, min(high or 120, 120) + 1):
        x = torch.randn(1, tokens, 4)
        assert torch.equal(executable.run({"x": x})[0], model(x))


def test_a_size_without_an_onnx_form_names_the_node() -> None:
    program = capture(Sized(lambda n: n & 3), {"x": torch.randn(2, 10, 4)})
    with pytest.raises(LoweringError, match=r"mul \(aten.mul.Tensor\).*bitwise_and"):
        OnnxExecutable.of(program, ops="portable", threads=1)
