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


class Mixed(nn.Module):
    """Computed in one dtype and returned in another; ``share`` is added of it where it is not exported."""

    def __init__(self, body: torch.dtype, returned: torch.dtype, share: float) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8).to(body)
        self.body, self.returned, self.share = body, returned, share

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x.to(self.body)).to(self.returned)
        return y if torch.compiler.is_exporting() else y + y * self.share


@pytest.mark.parametrize(
    ("body", "returned", "rounding", "error"),
    [
        (torch.float32, torch.float64, 1e-4, 1e-3),
        (torch.float16, torch.float32, 1e-2, 3e-2),
        (torch.float32, torch.float32, 1e-4, 1e-3),
        (torch.float64, torch.float32, 1e-4, 1e-3),
    ],
    ids=str,
)
def test_rounding_goes_by_the_coarsest_dtype_on_the_way(
    body: torch.dtype, returned: torch.dtype, rounding: float, error: float
) -> None:
    given = {"x": torch.randn(2, 9, 8)}
    capture(Mixed(body, returned, rounding), given)
    with pytest.raises(CaptureError, match="differs from the model"):
        capture(Mixed(body, returned, error), given)


def test_a_model_in_single_precision_may_return_double() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    model = nn.Sequential(body, nn.Softmax(-1)).eval()
    model[1].forward = lambda x: torch.softmax(x, -1, dtype=torch.float64)  # type: ignore[method-assign]
    assert 0 < (capture(model, {"input": torch.randn(2, 20, 64)}).facts.deviation or 0) < 1e-6


def test_small_values_of_a_model_in_half_precision_are_compared() -> None:
    """By the epsilons of half precision that a sum of larger terms may leave, they would be nothing."""
    model = Mixed(torch.float16, torch.float32, 3e-2)
    for parameter in model.parameters():
        parameter.data *= 1e-3
    with pytest.raises(CaptureError, match="differs from the model"):
        capture(model, {"x": torch.randn(2, 9, 8)})
