"""Pooling to a number of regions, and images and sequences of another size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersor.codegen.onnx import build
from tersor.ir.errors import LoweringError

from .conftest import small_program

aten = torch.ops.aten
IMAGES = {"x": {0: "batch"}}
IMAGE = [{"x": torch.randn(batch, 3, 8, 6)} for batch in (2, 1)]
LINE = [{"x": torch.randn(batch, 3, 7)} for batch in (2, 1)]
TARGETS = {
    "mean": (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default),
    "largest": (aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default),
}


def pooled(b: Any, target: Any, x: Any, sizes: list[int]) -> Any:
    result = b.call(target, x, sizes)
    return b.item(result, 0) if "max" in str(target) else result


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("regions", [1, 2, 3, 7, 9])
def test_every_region_is_of_its_own_entries(agree: Any, kind: str, regions: int) -> None:
    line, image = TARGETS[kind]
    agree(lambda b, x: pooled(b, line, x, [regions]), IMAGES, *LINE)
    agree(lambda b, x: pooled(b, image, x, [regions, 2]), IMAGES, *IMAGE)


@pytest.mark.parametrize("kind", TARGETS)
def test_one_region_is_of_as_many_as_there_are(agree: Any, kind: str) -> None:
    dims = {"x": {0: "batch", 2: "tokens"}}
    cases = [{"x": torch.randn(2, 3, tokens)} for tokens in (5, 9)]
    agree(lambda b, x: pooled(b, TARGETS[kind][0], x, [1]), dims, *cases)


@pytest.mark.parametrize("kind", TARGETS)
def test_more_of_a_size_that_varies_are_refused_by_name(kind: str) -> None:
    program = small_program(
        lambda b, x: pooled(b, TARGETS[kind][0], x, [3]), {"x": {2: "tokens"}}, {"x": torch.randn(2, 3, 5)}
    )
    with pytest.raises(LoweringError, match="adaptive_"):
        build(program)


def test_where_the_largest_lie_is_refused_by_name() -> None:
    program = small_program(
        lambda b, x: b.item(b.call(TARGETS["largest"][0], x, [2]), 1), {}, {"x": torch.randn(2, 3, 6)}
    )
    with pytest.raises(LoweringError, match="adaptive_max_pool"):
        build(program)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    "how", [([20], None), ([5], None), (None, [2.0]), (None, [1.7]), (None, [0.6])], ids=str
)
def test_lines_are_stretched(agree: Any, corners: bool, how: tuple[Any, Any]) -> None:
    size, factors = how
    agree(lambda b, x: b.call(aten.upsample_linear1d.vec, x, size, corners, factors), IMAGES, *LINE)


@pytest.mark.parametrize(
    "target", [aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec], ids=str
)
@pytest.mark.parametrize("how", [([20, 5], None), ([3, 9], None), (None, [2.0, 0.6])], ids=str)
def test_images_are_resized_without_aliases(agree: Any, target: Any, how: tuple[Any, Any]) -> None:
    size, factors = how
    agree(lambda b, x: b.call(target, x, size, False, factors), IMAGES, *IMAGE)


def test_a_factor_of_a_length_that_varies_is_a_whole_number(agree: Any) -> None:
    dims = {"x": {0: "batch", 2: "tokens"}}
    cases = [{"x": torch.randn(2, 3, tokens)} for tokens in (5, 9)]
    agree(lambda b, x: b.call(aten.upsample_linear1d.vec, x, None, False, [3.0]), dims, *cases)
    program = small_program(
        lambda b, x: b.call(aten.upsample_linear1d.vec, x, None, False, [0.29]),
        {"x": {2: "tokens"}},
        {"x": torch.randn(2, 3, 99)},
    )
    with pytest.raises(LoweringError, match="upsample_linear1d"):
        build(program)


def test_a_factor_is_rounded_as_pytorch_rounds_it(agree: Any) -> None:
    case = {"x": torch.randn(2, 3, 100)}
    agree(lambda b, x: b.call(aten.upsample_linear1d.vec, x, None, False, [0.29]), IMAGES, case)
