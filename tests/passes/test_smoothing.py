"""Inputs of products are evened out, and what is computed stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import DECODERS, decoder_program, rows
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import SMOOTHED, Program
from tersor.passes.deviation import Reference
from tersor.passes.pipeline import run
from tersor.passes.smoothing import smoothed, smoothing_sites

CHANNELS, LOUD = 16, 3


class Normed(nn.Module):
    """A norm with one loud channel before two products, of which the second is gated before a third."""

    def __init__(self, *, twice: bool = False, out: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)
        self.gate, self.up = nn.Linear(CHANNELS, 24), nn.Linear(CHANNELS, 24)
        self.down = nn.Linear(24, CHANNELS)
        self._twice, self._out = twice, out
        with torch.no_grad():
            self.norm.weight[LOUD] = 100.0
            self.up.weight[LOUD] = 50.0

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        hidden = nn.functional.silu(self.gate(normed)) * self.up(normed)
        result = self.down(hidden)
        if self._twice:
            result = self.down(nn.functional.pad(result, (0, 8)))
        return result + normed if self._out else result


def captured(**options: bool) -> tuple[Program, dict[str, Tensor]]:
    torch.manual_seed(0)
    program = capture(Normed(**options).eval(), {"x": torch.randn(2, 5, CHANNELS)})
    return program, {"x": torch.randn(4, 7, CHANNELS)}


def spread(values: Tensor) -> float:
    """How many times as large the largest channel is as the middle one."""
    peaks = values.abs().flatten(0, -2).amax(0)
    return float(peaks.max() / peaks.median())


def inputs_of_products(program: Program, sample: dict[str, Tensor]) -> list[float]:
    from tersor.ir.evaluate import evaluate

    nodes = [program.find(site.node) for site in smoothing_sites(program)]
    found = evaluate(program, nodes, sample)
    return [spread(found[node]) for node in nodes]


def test_a_loud_channel_is_moved_into_the_weights_and_outputs_stay() -> None:
    program, sample = captured()
    sites = smoothing_sites(program)
    assert [(len(site.readers), len(site.makers)) for site in sites] == [(2, 2), (1, 2)]
    after = smoothed(program, [sample])
    assert Reference(program, [sample]).compare(after).is_rounding
    assert len(after.notes[SMOOTHED]) == 3
    for loud, even in zip(
        inputs_of_products(program, sample), inputs_of_products(after, sample), strict=True
    ):
        assert even < loud / 3


def test_the_graph_stays_as_it_is_and_so_does_the_program_that_was_given() -> None:
    program, sample = captured()
    before, weights = str(program), {name: weight.clone() for name, weight in program.weights.items()}
    after = smoothed(program, [sample])
    assert str(after) == before == str(program)
    assert all(torch.equal(program.weights[name], weight) for name, weight in weights.items())
    assert sum(not torch.equal(after.weights[name], weight) for name, weight in weights.items()) == 5


def test_a_weight_that_others_read_and_an_input_that_others_read_are_left_alone() -> None:
    program, sample = captured(twice=True, out=True)
    assert smoothing_sites(program) == []
    assert smoothed(program, [sample]) is program


def test_channels_that_are_never_there_are_not_scaled() -> None:
    program, _ = captured()
    after = smoothed(program, [{"x": torch.zeros(2, 3, CHANNELS)}])
    assert all(torch.isfinite(weight).all() for weight in after.weights.values())
    assert Reference(program, [{"x": torch.randn(2, 3, CHANNELS)}]).compare(after).is_rounding


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("spec", [None, "kv-cache"])
def test_decoders_compute_what_they_did(name: str, spec: str | None) -> None:
    program: Any = decoder_program(name)
    if spec:
        program, _ = run(program, [spec])
    sample = program.bind(**rows([9, 5]))
    after = smoothed(program, [sample])
    assert after.notes[SMOOTHED], "no norm before a product was found"
    assert Reference(program, [program.bind(**rows([8, 8], seed=1))]).compare(after).is_rounding


class Odd(nn.Module):
    """What makes an input by channel, or seems to."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form
        self.norm = nn.LayerNorm([5, CHANNELS])
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.shift = nn.Parameter(torch.randn(CHANNELS))
        self.first, self.second = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        if self._form == "norm of two dims":
            made = self.norm(x)
        elif self._form == "norm without a scale":
            made = nn.functional.layer_norm(x, (CHANNELS,), None, self.shift)
        elif self._form == "square":
            made = self.first(x)
            made = made * made
        elif self._form == "number":
            made = x * self.scale
        else:
            made = x * self.scale.exp().reshape(1)
        return self.second(made)


@pytest.mark.parametrize(
    "form", ["norm of two dims", "norm without a scale", "square", "number", "number of one dim"]
)
def test_what_cannot_be_scaled_by_channel_is_left_alone(form: str) -> None:
    program = capture(Odd(form).eval(), {"x": torch.randn(2, 5, CHANNELS)})
    sample = {"x": torch.randn(3, 5, CHANNELS)}
    assert smoothing_sites(program) == []
    assert smoothed(program, [sample]) is program
