"""Values that meet at one place are reduced as torch reduces them, in every dtype that ONNX Runtime can hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.errors import LoweringError

from .conftest import small_program

aten = torch.ops.aten
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64]
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DIMS = {"x": {0: "batch"}, "index": {0: "batch"}, "source": {0: "batch"}}


def case(dtype: torch.dtype, batch: int, places: int = 4) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randint(1, 9, (batch, 5)).to(dtype),
        "index": torch.randint(places, (batch, 7)),
        "source": torch.randint(1, 3, (batch, 7)).to(dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_added_where_indices_meet(agree: Any, dtype: torch.dtype) -> None:
    def build(b: Any, x: Any, index: Any, source: Any) -> Any:
        return b.call(aten.scatter_add.default, x, 1, index, source)

    agree(build, DIMS, *(case(dtype, n) for n in (2, 1, 3)), rtol=ROUNDING.get(dtype, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "prod", "amax", "amin", "mean"])
def test_reduced_where_indices_meet(agree: Any, reduce: str, include_self: bool, dtype: torch.dtype) -> None:
    def build(b: Any, x: Any, index: Any, source: Any) -> Any:
        return b.call(aten.scatter_reduce.two, x, -1, index, source, reduce, include_self=include_self)

    if reduce == "mean" and not dtype.is_floating_point:
        with pytest.raises(LoweringError, match="mean of integers"):
            OnnxExecutable.of(small_program(build, DIMS, case(dtype, 2)), threads=1)
        return
    agree(build, DIMS, *(case(dtype, n) for n in (2, 1, 3)), rtol=ROUNDING.get(dtype, 1e-6))


def test_only_the_indexed_part_of_a_larger_source_is_read(agree: Any) -> None:
    def build(b: Any, x: Any, index: Any, source: Any) -> Any:
        return b.call(aten.scatter_add.default, x, 1, index, source)

    inputs = {
        name: value[:, :4] if name == "index" else value for name, value in case(torch.float32, 3).items()
    }
    agree(build, DIMS, inputs)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_rows_are_added_where_indices_meet(agree: Any, dtype: torch.dtype) -> None:
    def build(b: Any, x: Any, rows: Any, source: Any) -> Any:
        put = b.call(aten.index_put.default, x, [rows], source, True)
        return put, b.call(aten.index_add.default, x, 0, rows, source)

    inputs = {
        "x": torch.randint(9, (4, 5)).to(dtype),
        "rows": torch.tensor([0, 2, 0]),
        "source": torch.randint(9, (3, 5)).to(dtype),
    }
    agree(build, {}, inputs, rtol=ROUNDING.get(dtype, 1e-6))
