"""A session takes what a model takes and gives what a model gives."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor

from tersor.codegen.target import Executable
from tersor.ir.errors import InputError
from tersor.ir.program import TensorSpec
from tersor.ir.structure import Structure
from tersor.runtime.session import Session


class Doubling(Executable):
    """Two inputs `[batch, tokens]`; their sum and twice the first."""

    inputs = (
        TensorSpec("ids", ("batch", "tokens"), torch.int64),
        TensorSpec("mask", ("batch", "tokens"), torch.int64),
    )
    outputs = (
        TensorSpec("sum", ("batch", "tokens"), torch.int64),
        TensorSpec("twice", ("batch", "tokens"), torch.int64),
    )

    domains = ()

    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return inputs["ids"] + inputs["mask"], 2 * inputs["ids"]

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        raise NotImplementedError


@pytest.fixture
def session() -> Session:
    structure = Structure.of({"sum": torch.zeros(1), "nested": [torch.zeros(1)]})
    return Session(Doubling(), structure, {"batch": (1, None), "tokens": (1, 4)})


ids, mask = torch.tensor([[1, 2]]), torch.tensor([[1, 0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s(ids, mask),
        lambda s: s(ids, mask=mask),
        lambda s: s(ids=ids, mask=mask),
        lambda s: s({"ids": ids, "mask": mask}),
        lambda s: s(UserDict(ids=ids, mask=mask)),
        lambda s: s({"ids": ids}, mask=mask),
        lambda s: s(ids.numpy(), mask.tolist()),
        lambda s: s(ids.flip(1).numpy()[:, ::-1], mask),
        lambda s: s(ids, mask, positions=None),
    ],
)
def test_every_way_of_calling_gives_the_models_structure(session: Session, call: Any) -> None:
    result = call(session)
    assert list(result) == ["sum", "nested"]
    assert result["sum"].tolist() == [[2, 2]]
    assert result["nested"][0].tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": ids}, "'mask' is missing"),
        ({"ids": ids, "mask": mask, "extra": ids}, "unknown input 'extra'"),
        ({"ids": ids, "mask": mask[:, :1]}, "tokens = 2 as in 'ids'"),
        ({"ids": ids.repeat(1, 4), "mask": mask.repeat(1, 4)}, "the model takes 1 to 4"),
        ({"ids": ids.float(), "mask": mask}, "float32"),
    ],
)
def test_inputs_that_do_not_fit_are_named(session: Session, inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        session(inputs)


@pytest.mark.parametrize(
    "value",
    [
        "a",
        [[1, "b"]],
        [[1, 2], [3]],
        {1, 2},
        np.array,
        np.array(["a"]),
        np.array([None]),
        [2**70],
        [None],
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_tensor_is_named_with_what_to_give(session: Session, value: Any) -> None:
    for call in (
        lambda: session(ids=value, mask=mask),
        lambda: session(value, mask=mask),
        lambda: session({"ids": value, "mask": mask}),
    ):
        with pytest.raises(InputError, match=r"'ids' is a .*: give a tensor, .*\[batch, tokens\] int64"):
            call()


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((ids, mask, ids), {}, "3 positional inputs given, the program takes 2: ids"),
        ((), {"ids": None, "mask": mask}, "'ids' is missing; the program takes: ids"),
        ((), {"ids": ids[0], "mask": mask}, r"'ids' has shape \[2\], the program takes \[batch, tokens\]"),
        ((ids,), {"ids": ids, "mask": mask}, "'ids' is given twice"),
        ((ids.to_sparse(), mask), {}, "'ids' is torch.sparse_coo: give a dense tensor"),
        ((ids, mask.to("meta")), {}, "'mask' is on the meta device"),
        (({1: ids},), {}, "unknown input 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    session: Session, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        session(*args, **kwargs)
