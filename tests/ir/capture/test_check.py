"""A captured Program is compared with its model however small, or however masked, the outputs are."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import CaptureError


class Read(nn.Module):
    """A linear layer whose result is read as told."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.linear(x))


def _masked(x: Tensor, low: float) -> Tensor:
    hidden = torch.zeros(8, dtype=torch.bool)
    hidden[0] = True
    return (x * random.random()).masked_fill(hidden, low)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize(
    "chance", [lambda x: nn.functional.dropout(x, 0.5, True), lambda x: x * random.random()]
)
def test_chance_is_found_at_every_scale(chance: Callable[[Tensor], Tensor], scale: float) -> None:
    with pytest.raises(CaptureError, match="chance"):
        capture(Read(lambda x: chance(x) * scale), {"x": torch.randn(2, 8)})


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min, -1e9])
def test_chance_is_found_beside_masked_entries(low: float) -> None:
    with pytest.raises(CaptureError, match="chance"):
        capture(Read(lambda x: _masked(x, low)), {"x": torch.randn(2, 8)})


@pytest.mark.parametrize(
    "read",
    [
        lambda x: (x - x.mean(-1, keepdim=True)).mean(-1),
        lambda x: x.masked_fill(x < 0, float("nan")),
        lambda x: x.masked_fill(x < 0, float("-inf")),
        lambda x: x * 1e-30,
    ],
)
def test_what_cancels_and_what_is_no_number_is_captured(read: Callable[[Tensor], Tensor]) -> None:
    capture(Read(read), {"x": torch.randn(2, 8)})


class Exported(nn.Module):
    """Another function while it is exported: ``tells(x)`` is added to its result otherwise."""

    def __init__(self, tells: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tells = tells

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.compiler.is_exporting() else x + self.tells(x)


def test_what_differs_at_another_size_alone_is_found() -> None:
    model = Exported(lambda x: x * 0 if x.shape[1] == 9 else x)
    with pytest.raises(CaptureError, match=r"differs from the model by .* on inputs x \[1, 19, 8\]"):
        capture(model, {"x": torch.randn(2, 9, 8)})


@pytest.mark.parametrize("deviates", [lambda tokens: tokens == 9, lambda tokens: tokens != 9])
def test_the_deviation_is_the_largest_over_both_sizes(deviates: Callable[[int], bool]) -> None:
    """What differs by no more than rounding is captured, and told."""
    model = Exported(lambda x: x * (1e-4 if deviates(x.shape[1]) else 0))
    program = capture(model, {"x": torch.ones(2, 9, 8)})
    assert program.facts.deviation == pytest.approx(1e-4, rel=0.01)


def test_a_difference_is_rounding_up_to_a_small_part_of_the_values() -> None:
    x = torch.randn(2, 9, 8) * 50
    capture(Exported(lambda x: x * 1e-4), {"x": x})
    with pytest.raises(CaptureError, match="differs from the model"):
        capture(Exported(lambda x: x * 4e-4), {"x": x})
