"""Deviation measures against NumPy, and what counts as agreement."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from random_programs import Config, build, inputs_of
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes import deviation
from tersor.passes.deviation import Deviation, Reference, is_logits


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


@pytest.mark.parametrize("room", [0, 2000])
def test_outputs_that_there_is_no_room_for_are_computed_again(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three samples there is room for none, or for two."""
    config = Config(padding=True, output="logits")
    program = build(config)
    other = replace(program, weights={name: w * 1.01 for name, w in program.weights.items()})
    samples = [inputs_of(program, config, batch=2, tokens=7, seed=seed) for seed in range(3)]
    held = Reference(program, samples)
    monkeypatch.setattr(deviation, "_MOST_HELD", room)
    again = Reference(program, samples)
    assert again.compare(other) == held.compare(other)
    assert not again.compare(other).is_rounding
    assert again.finite
    assert [sample.keys() for sample in again.outputs[1:]] == [sample.keys() for sample in held.outputs[1:]]
    with pytest.raises(ValueError, match="shorter"):
        again.compare_outputs(list(held.outputs)[:2])


def test_what_is_held_is_no_part_of_something_larger() -> None:
    program = build(Config(output="first", tokens=14))
    (outputs,) = Reference(program, [program.example_inputs]).outputs
    (value,) = outputs.values()
    assert value.untyped_storage().nbytes() <= 2 * value.nbytes


def test_after_a_sample_too_large_smaller_ones_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(output="logits")
    program = build(config)
    samples = [inputs_of(program, config, batch=2, tokens=tokens) for tokens in (16, 3, 3)]
    monkeypatch.setattr(deviation, "_MOST_HELD", 1000)
    outputs = Reference(program, samples).outputs
    again = [outputs[number] is outputs[number] for number in range(3)]
    assert again == [False, True, True]


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


class Named(nn.Module):
    """Returns one tensor under every name that Hugging Face's output classes have for scores, and under others."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        scores = {"logits", "logits_per_image", "logits_per_text", "start_logits", "class_queries_logits"}
        others = {
            "last_hidden_state",
            "image_embeds",
            "output_logits_scale",
            "logits_as_ids",
            "single_logits",
        }
        outputs: dict[str, Any] = {name: x.exp() for name in sorted(scores | others)}
        outputs |= {"logits_as_ids": x.argmax(-1, keepdim=True) + x.long(), "single_logits": x[:, :1].exp()}
        outputs["vision_output"] = {"logits": x.sin(), "pooler_output": x.cos()}
        return outputs | {"router_logits": (x.sin(), x.cos()), "hidden_states": (x.tan(), x.tanh())}


def test_logits_are_known_by_the_names_that_output_classes_have_for_them() -> None:
    program = capture(Named(), torch.randn(3, 5))
    known = {spec.name for spec in program.outputs if is_logits(program, spec.name)}
    fields = {"logits", "logits_per_image", "logits_per_text", "start_logits", "class_queries_logits"}
    assert known == {*fields, "vision_output.logits", "router_logits.0", "router_logits.1"}


def test_the_similarity_of_pictures_and_texts_is_a_distribution_over_texts() -> None:
    program = capture(Named(), torch.randn(3, 5))
    reference = Reference(program, [program.example_inputs])
    changed = dict(reference.outputs[0])
    want = changed["logits_per_image"]
    got = changed["logits_per_image"] = want.roll(1, dims=1)
    found = {output.name: output for output in reference.compare_outputs([changed]).outputs}
    divergence = nn.functional.kl_div(
        got.double().log_softmax(1), want.double().log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert found["logits_per_image"].kl == pytest.approx(float(divergence))
    assert found["logits_per_image"].top1_agreement == 0.0


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


class Mixed(nn.Module):
    """Computed in one dtype, returned in another."""

    def __init__(self, body: torch.dtype, returned: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8).to(body)
        self.body, self.returned = body, returned

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.to(self.body)).to(self.returned)


@pytest.mark.parametrize("returned", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("body", "share"),
    [(torch.bfloat16, 1e-1), (torch.float16, 2e-2), (torch.float32, 2e-4), (torch.float64, 1e-9)],
    ids=str,
)
def test_rounding_goes_by_the_coarsest_dtype_and_hides_nothing_larger(
    body: torch.dtype, returned: torch.dtype, share: float
) -> None:
    share = max(share, {torch.float16: 2e-2, torch.float32: 2e-4, torch.float64: 1e-9}[returned])
    program = capture(Mixed(body, returned), torch.randn(2, 7, 8))
    reference = Reference(program, [program.example_inputs])
    want = reference.outputs[0]["output"].double()
    largest = float(want.abs().max())

    def is_rounding(part: float) -> bool:
        """With one entry off by some part of the share that rounding has."""
        got = want.clone()
        got[1, 3, 5] += part * share * largest
        return reference.compare_outputs([{"output": got}]).is_rounding

    assert is_rounding(0.9)
    assert not is_rounding(1.1)
    assert not is_rounding(20)
