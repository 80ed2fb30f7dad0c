"""What stands for "none" in an output, as in masked logits, says nothing of how far off the rest is."""

from __future__ import annotations

import math

import pytest
import torch
from random_programs import Config, build
from torch import Tensor

from tersor.passes.deviation import Deviation, Reference

FILLERS = [-math.inf, torch.finfo(torch.float32).min, -1e9, -1e4]


def beside(filler: float, change: Tensor | float) -> tuple[Deviation, Deviation]:
    """Deviation of outputs off by ``change``; and the same with half of the features filled."""
    program = build(Config(layers=1))
    plain, filled = (Reference(program, [program.example_inputs]) for _ in range(2))
    moved = plain.outputs[0]["output"] * (1 + change)
    half = torch.arange(moved.shape[-1]) % 2 == 0
    expected = plain.compare_outputs([{"output": moved}])
    filled.outputs[0]["output"] = filled.outputs[0]["output"].masked_fill(half, filler)
    return expected, filled.compare_outputs([{"output": moved.masked_fill(half, filler)}])


@pytest.mark.parametrize("filler", FILLERS)
def test_a_filler_hides_no_difference(filler: float) -> None:
    expected, found = beside(filler, 0.1)
    assert not found.is_rounding
    assert found.outputs[0].relative_l2 == pytest.approx(expected.outputs[0].relative_l2, rel=1e-3)
    random = torch.randn(build(Config(layers=1)).run(build(Config(layers=1)).example_inputs)[0].shape)
    assert beside(filler, random)[1].outputs[0].cosine_distance > 0.1


@pytest.mark.parametrize("filler", FILLERS)
def test_rounding_beside_a_filler_is_rounding(filler: float) -> None:
    assert beside(filler, 1e-7)[1].is_rounding


def test_a_filler_that_is_no_longer_there_counts() -> None:
    program = build(Config(layers=1))
    reference = Reference(program, [program.example_inputs])
    want = reference.outputs[0]["output"]
    moved = want.clone()
    want[0, 0, 0] = -1e9
    assert not reference.compare_outputs([{"output": moved}]).is_rounding


def test_large_values_that_differ_are_no_filler() -> None:
    program = build(Config(layers=1))
    reference = Reference(program, [program.example_inputs])
    want = reference.outputs[0]["output"]
    want.mul_(1e6 / want.abs().amin())
    assert reference.compare_outputs([{"output": -want}]).outputs[0].cosine_distance == pytest.approx(2.0)
