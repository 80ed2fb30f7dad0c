"""A captured model returns what the model returns, whatever class holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.archive import load, save
from tersor.ir.capture import capture
from tersor.ir.errors import CaptureError


class Named(NamedTuple):
    y: Tensor
    more: Tensor | None


@dataclass
class Fields:
    """Not registered with PyTorch."""

    y: Tensor
    more: Any


class Mine(dict[str, Any]):
    pass


class Returns(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x, x * 2)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x, y: Named(y, None), ["y"]),
        (lambda x, y: Fields(y, {"x": x}), ["y", "more.x"]),
        (lambda x, y: Mine(b=y, a=x), ["b", "a"]),
        (lambda x, y: {"a": y, "b": None}, ["a"]),
        (lambda x, y: y.max(1), ["values", "indices"]),
    ],
)
def test_the_class_of_an_output_is_kept(make: Any, names: list[str], tmp_path: Any) -> None:
    model = Returns(make)
    program = capture(model, {"x": torch.randn(2, 5)})
    assert [spec.name for spec in program.outputs] == names
    save(program, tmp_path / "program")
    x = torch.randn(3, 7)
    for one in (program, load(tmp_path / "program")):
        got, want = one(x), model(x)
        assert type(got) is type(want)
        assert str(got) == str(want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: (y, x.shape[1]), r"output\[1\] is of type int.*torch\.tensor\(number\)"),
        (lambda x, y: None, "returns no tensor"),
        (lambda x, y: {"a.b": x, "a": {"b": y}}, r"2 of its outputs are called 'a\.b'"),
    ],
)
def test_an_output_that_cannot_be_kept_is_named_with_a_mend(make: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Returns(make), {"x": torch.randn(2, 5)})


class Varies(nn.Module):
    """Returns what ``make`` says, which is told whether it is exported."""

    def __init__(self, make: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x, torch.compiler.is_exporting())


@pytest.mark.parametrize(
    "make",
    [
        lambda x, exported: (x,) if exported or len(x) == 3 else {"output": x},
        lambda x, exported: (x,) if exported or len(x) == 3 else (x, x),
        lambda x, exported: (x,) if exported or len(x) == 3 else (x, 1),
    ],
)
def test_a_model_that_nests_its_output_otherwise_at_another_size_is_refused(make: Any) -> None:
    with pytest.raises(CaptureError, match=r"on inputs x \[1, 11\] the model returns"):
        capture(Varies(make), {"x": torch.randn(3, 5)})


def test_a_model_that_returns_other_tensors_while_it_is_exported_is_refused() -> None:
    with pytest.raises(CaptureError, match="the model returns 2 tensors and the exported graph 1"):
        capture(Varies(lambda x, exported: (x,) if exported else (x, x * 2)), {"x": torch.randn(3, 5)})
