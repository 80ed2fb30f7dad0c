"""Arguments that are no tensors are constants from capture on: what they were may be given again, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.errors import InputError


class Tempered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(
        self, ids: Tensor, temperature: float = 1.0, mask: Tensor | None = None, everything: bool = False
    ) -> Any:
        x = self.table(ids)
        x = x if mask is None else x * mask[..., None]
        y = self.head(x.mean(1)) / temperature
        return (y, x) if everything else y


IDS, MASK = torch.randint(0, 50, (2, 6)), torch.ones(2, 6)
EXAMPLE = {"ids": IDS, "temperature": 2.0, "mask": MASK, "everything": True}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tempered().eval()


def loaded(fast: tersor.OptimizedModel, folder: Path) -> tersor.OptimizedModel:
    fast.save(folder)
    return tersor.load(folder)


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_the_example_is_taken_again(model: nn.Module, target: str, tmp_path: Path) -> None:
    fast = tersor.optimize_model(model, [], target, example_inputs=EXAMPLE)
    assert {
        "temperature is fixed at 2.0, as it was given",
        "everything is fixed at True, as it was given",
    } <= set(fast.report.notes)
    want = model(**EXAMPLE)
    for called in (fast, loaded(fast, tmp_path / "out")):
        for got in (
            called(**EXAMPLE),
            called(EXAMPLE),
            called(IDS, MASK),
            called(IDS, MASK, temperature=np.float64(2)),
        ):
            torch.testing.assert_close(got, want)
    assert all(check.ok for check in tersor.load(tmp_path / "out").verify(against=model).checks)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"temperature": 4.0}, "'temperature' is 4.0: it was fixed at 2.0"),
        ({"everything": False}, "fixed at True"),
    ],
)
def test_another_value_is_refused(
    model: nn.Module, given: dict[str, Any], named: str, tmp_path: Path
) -> None:
    fast = tersor.optimize_model(model, [], "torch", example_inputs=EXAMPLE)
    for called in (fast, loaded(fast, tmp_path / "out")):
        with pytest.raises(InputError, match=named):
            called(**(EXAMPLE | given))


def test_by_name_alone(model: nn.Module) -> None:
    fast = tersor.optimize_model(model, [], "torch", example_inputs=EXAMPLE)
    for given in ((IDS, 2.0, MASK), (IDS, MASK, 2.0), (IDS, 3.0, MASK, True)):
        with pytest.raises(InputError, match=r"give temperature, everything, .* by name"):
            fast(*given)


@pytest.mark.parametrize("value", [np.array([2.0, 1.0]), torch.tensor([2.0, 1.0]), [2.0]])
def test_what_is_no_single_number_is_refused(model: nn.Module, value: Any) -> None:
    fast = tersor.optimize_model(model, [], "torch", example_inputs=EXAMPLE)
    with pytest.raises(InputError, match="'temperature'"):
        fast(IDS, MASK, temperature=value)
