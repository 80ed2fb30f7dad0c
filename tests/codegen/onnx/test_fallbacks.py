"""What no lowering of ours covers goes through the exporter's table, then one-node decomposition, then an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.codegen.onnx import build
from tersor.codegen.onnx.registry import LOWERINGS
from tersor.ir.builder import Builder
from tersor.ir.errors import InputError, LoweringError

from .conftest import small_program

aten = torch.ops.aten
DIMS = {"x": {0: "batch", 1: "tokens"}}
CASES = [{"x": torch.linspace(-2, 2, b * n * 6).reshape(b, n, 6)} for b, n in ((2, 5), (1, 3), (3, 8))]


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.logsumexp.default, ([-1],)),
        (aten.leaky_relu.default, (0.1,)),
        (aten.hardswish.default, ()),
        (aten.constant_pad_nd.default, ([1, 2],)),
        (aten.elu.default, ()),
    ],
    ids=str,
)
def test_the_exporters_table_serves_one_node(agree: Any, target: Any, args: tuple[Any, ...]) -> None:
    assert target not in LOWERINGS
    agree(lambda b, x: b.call(target, x, *args), DIMS, *CASES)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.square.default, ()),
        (aten.hardshrink.default, ()),
        (aten.nan_to_num.default, ()),
        (aten.rot90.default, (1, [0, 2])),
    ],
    ids=str,
)
def test_one_node_is_decomposed_with_its_sizes_still_symbolic(
    agree: Any, target: Any, args: tuple[Any, ...]
) -> None:
    assert target not in LOWERINGS
    agree(lambda b, x: b.call(target, x, *args), DIMS, *CASES)


def test_an_operator_without_any_form_is_named_with_its_node_and_layer() -> None:
    def write(b: Builder, x: Any) -> Any:
        b.layer = "encoder.layer.3.mixer"
        return b.item(b.call(aten.geqrf.default, x), 0)

    program = small_program(write, {}, {"x": torch.randn(3, 3)})
    with pytest.raises(LoweringError, match=r"geqrf.*encoder\.layer\.3\.mixer") as raised:
        build(program)
    assert "target='torch'" in str(raised.value)


def test_unknown_op_level_is_refused() -> None:
    program = small_program(lambda b, x: b.mul(x, 2.0), DIMS, CASES[0])
    with pytest.raises(InputError, match="portable, ort"):
        build(program, "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [0, 1])
def test_grid_sampling_in_the_words_of_its_opset(agree: Any, mode: int) -> None:
    def case(batch: int) -> dict[str, Tensor]:
        return {"x": torch.randn(batch, 2, 5, 5), "grid": torch.rand(batch, 3, 4, 2) * 2 - 1}

    dims = {"x": {0: "batch"}, "grid": {0: "batch"}}
    agree(
        lambda b, x, grid: b.call(aten.grid_sampler_2d.default, x, grid, mode, 0, False),
        dims,
        case(2),
        case(3),
    )
