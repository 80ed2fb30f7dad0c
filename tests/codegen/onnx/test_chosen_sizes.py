"""Results whose size their values decide: it is read from the result itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.builder import Builder
from tersor.ir.capture import capture

from .conftest import small_program

aten = torch.ops.aten
DIMS = {"x": {0: "batch", 1: "tokens"}}
CASES = [{"x": torch.linspace(-2, 2, b * n * 6).reshape(b, n, 6)} for b, n in ((2, 5), (1, 3), (3, 8))]
COUNTS = torch.tensor([2, 0, 1, 3])


def test_values_that_decide_a_size_give_it_to_later_nodes() -> None:
    def write(b: Builder, x: Any) -> Any:
        found = b.call(aten.nonzero.default, b.call(aten.gt.Scalar, x, 0.0))
        return found, b.call(aten.new_ones.default, x, [b.size(found, 0), 2])

    program = small_program(write, DIMS, CASES[0])
    executable = OnnxExecutable.of(program, ops="portable", threads=1)
    for case in CASES:
        expected: tuple[Tensor, ...] = (case["x"] > 0).nonzero(), torch.ones(int((case["x"] > 0).sum()), 2)
        for want, have in zip(expected, executable.run(case), strict=True):
            assert torch.equal(want, have)


@pytest.mark.parametrize(
    "choose",
    [
        lambda x, counts: torch.masked_select(x, x[:, :1] > 0),
        lambda x, counts: torch.masked_select(x[:, :1], x > 0),
        lambda x, counts: torch.repeat_interleave(x, counts, dim=1),
        lambda x, counts: torch.repeat_interleave(x, counts[:1], dim=-1),
        lambda x, counts: torch.repeat_interleave(x[0, 0], counts),
        lambda x, counts: torch.repeat_interleave(x[:, 0, :4], counts.to(torch.int32), 1).shape[1] + x,
        lambda x, counts: torch.repeat_interleave(counts),
    ],
)
def test_results_whose_size_their_values_decide(choose: Callable[..., Any]) -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor, counts: Tensor) -> Any:
            return choose(x, counts)

    program = capture(Chooses(), {"x": torch.randn(3, 4, 4), "counts": COUNTS}, dynamic={"x": {0: "batch"}})
    executable = OnnxExecutable.of(program, ops="portable", threads=1)
    for batch in (1, 2, 5):
        x, counts = torch.randn(batch, 4, 4), COUNTS.roll(batch)
        assert torch.equal(executable.run({"x": x, "counts": counts})[0], choose(x, counts))
