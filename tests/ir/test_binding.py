"""What a caller may hand over for an input, to a Program as to whatever runs one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(
        Sum(), {"x": torch.ones(2, 3), "y": torch.ones(2, 3)}, {"x": {0: "batch"}, "y": {0: "batch"}}
    )


X = torch.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, X), {}),
        ((X,), {"y": X.numpy()}),
        (({"x": X.tolist(), "y": X.flip(0).numpy()[::-1]},), {}),
        ((), {"x": X.double(), "y": X, "labels": None}),
    ],
)
def test_tensors_arrays_and_lists_are_taken(program: Program, args: Any, kwargs: Any) -> None:
    assert torch.equal(program(*args, **kwargs), X + X)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, X, X), {}, "3 positional inputs"),
        ((X,), {}, "'y' is missing"),
        ((X, None), {}, "'y' is missing"),
        ((X, X), {"x": X}, "'x' is given twice"),
        ((X, X), {"z": X}, "unknown input 'z'"),
        (("a", X), {}, "'x' is a str of which no tensor"),
        (([[1.0], [1.0, 2.0]], X), {}, "'x' is a list of which no tensor"),
        ((np.array([object()]), X), {}, "'x' is a ndarray of which no tensor"),
        ((X.to("meta"), X), {}, "'x' is on the meta device"),
        ((X.to_sparse(), X), {}, "'x' is torch.sparse_coo"),
        ((X.long(), X), {}, r"'x' is torch.int64, the program takes torch.float32"),
        ((X[0], X), {}, r"'x' has shape \[3\]"),
        ((X[:, :2], X), {}, "size 2 where the program takes 3"),
        ((X, X[:2]), {}, "batch = 4 as in 'x'; if the two may differ, capture"),
    ],
)
def test_what_does_not_fit_is_named(program: Program, args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        program(*args, **kwargs)
