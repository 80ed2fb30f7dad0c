"""Deviation measures against NumPy, and what counts as agreement."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_programs import Config, build, inputs_of
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.deviation import Deviation, Reference


def measured(
    program: Program, change: Tensor | float, *, samples: int = 2
) -> tuple[Deviation, list[Tensor], list[Tensor]]:
    """Deviation of outputs that are ``change`` away from the program's, and both lists of outputs."""
    config = Config(ids="input_ids" in [spec.name for spec in program.inputs])
    inputs = [inputs_of(program, config, batch=2, tokens=7, seed=seed) for seed in range(samples)]
    reference = Reference(program, inputs)
    name = program.outputs[0].name
    want = [sample[name] for sample in reference.outputs]
    got = [value + change for value in want]
    return reference.compare_outputs([{name: value} for value in got]), want, got


def test_a_program_does_not_deviate_from_itself() -> None:
    program = build(Config(padding=True, output="logits"))
    reference = Reference(program, [program.example_inputs])
    deviation = reference.compare(program)
    assert deviation.overall == pytest.approx(0.0, abs=1e-12)
    assert deviation.is_rounding
    assert (deviation.outputs[0].max_abs, deviation.top1_agreement) == (0.0, 1.0)


def test_measures_equal_a_numpy_reference() -> None:
    change = torch.randn(2, 7, 13)
    deviation, want, got = measured(build(Config(layers=1, output="logits")), change)
    a, b = (np.concatenate([v.double().numpy().reshape(-1, 13) for v in side]) for side in (want, got))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (a, b))
    output = deviation.outputs[0]
    assert deviation.overall == output.cosine_distance == pytest.approx((1 - cosine).mean())
    assert output.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert output.max_abs == pytest.approx(np.abs(a - b).max())
    assert output.kl == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert output.top1_agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_only_logits_have_divergence_and_agreement() -> None:
    deviation, _, _ = measured(build(Config(layers=1)), 0.1)
    assert (deviation.outputs[0].kl, deviation.outputs[0].top1_agreement) == (None, None)


def test_padding_is_left_out() -> None:
    config = Config(layers=1, padding=True)
    program = build(config)
    inputs = inputs_of(program, config, batch=2, tokens=7, seed=3)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    reference = Reference(program, [inputs])
    spoiled = reference.outputs[0]["output"].masked_fill(padding[..., None], float("nan"))
    assert reference.compare_outputs([{"output": spoiled}]).is_rounding
    spoiled = reference.outputs[0]["output"] + padding.logical_not()[..., None]
    assert not reference.compare_outputs([{"output": spoiled}]).is_rounding


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_infinitely_far_away(bad: float) -> None:
    change = torch.zeros(2, 7, 8)
    change[0, 0, 0] = bad
    deviation, _, _ = measured(build(Config(layers=1)), change)
    assert not deviation.finite
    assert deviation.overall == math.inf
    assert not deviation.is_rounding


def test_rounding_scales_with_the_output() -> None:
    program = build(Config(layers=1))
    small, want, _ = measured(program, 0.0)
    scale = max(float(value.abs().max()) for value in want)
    assert measured(program, 1e-4 * scale)[0].is_rounding
    assert not measured(program, 1e-3 * scale)[0].is_rounding
    assert small.is_rounding


def test_an_output_of_another_shape_is_listed_not_compared() -> None:
    program = build(Config(layers=1))
    reference = Reference(program, [program.example_inputs])
    deviation = reference.compare_outputs([{"output": reference.outputs[0]["output"][:, :3]}])
    assert deviation.not_compared == ("output",)
    assert deviation.overall == math.inf
    assert not deviation.is_rounding


@pytest.mark.parametrize("lost", ["hidden", "pooled"])
def test_outputs_that_agree_do_not_make_up_for_one_that_is_lost(lost: str) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x.exp(), "pooled": x.exp().mean(1)}

    program = capture(Two(), torch.randn(2, 7, 8))
    reference = Reference(program, [program.example_inputs])
    assert reference.compare_outputs(reference.outputs).is_rounding
    left = {name: value for name, value in reference.outputs[0].items() if name != lost}
    deviation = reference.compare_outputs([left])
    assert deviation.not_compared == (lost,)
    assert [output.rounding for output in deviation.outputs] == [0.0]
    assert not deviation.is_rounding


def test_a_reference_with_nan_knows_it() -> None:
    program = build(Config(layers=1)).edit()
    assert Reference(program, [program.example_inputs]).finite
    name = "layers.0.mlp.up.weight"
    spoiled = replace(program, weights={**program.weights, name: program.weights[name] * math.nan})
    assert not Reference(spoiled, [program.example_inputs]).finite
