"""A session reads weights where the Program holds them, whatever ONNX Runtime makes of transpositions around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

aten = torch.ops.aten


@pytest.mark.parametrize(("tokens", "width"), [(64, 64), (48, 64)])
@pytest.mark.parametrize("dims", [(1, "width", "tokens"), ("width", "tokens"), ("width", 1), ("tokens",)])
def test_a_weight_that_is_added_between_transpositions(
    agree: Any, tokens: int, width: int, dims: Any
) -> None:
    """ONNX Runtime moves the transpositions to the weight, under its own name."""
    random = torch.Generator().manual_seed(0)
    sizes = {"tokens": tokens, "width": width}
    added = torch.randn([sizes.get(dim, 1) for dim in dims], generator=random)
    matrix = torch.randn(width, width, generator=random)

    def build(b: Any, x: Any) -> Any:
        turned = b.call(aten.add.Tensor, b.call(aten.transpose.int, x, 1, 2), b.weight("added", added))
        back = b.call(aten.transpose.int, b.call(aten.relu.default, turned), 1, 2)
        return b.call(aten.linear.default, back, b.weight("matrix", matrix))

    agree(build, {"x": {0: "batch"}}, {"x": torch.randn(2, tokens, width, generator=random)})
