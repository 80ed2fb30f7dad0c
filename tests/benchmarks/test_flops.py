"""The counter sees inside dialect operators, so that it can contradict the cost analysis."""

from __future__ import annotations

import pytest
import torch

from benchmarks.flops import counted_flops
from tersor.ir.analyses.cost import cost
from tersor.ir.capture import capture
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.method import TokenMethod


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(0, 100, (2, 48)),
        "attention_mask": torch.ones(2, 48, dtype=torch.int64),
    }


def test_the_counter_agrees_with_the_cost_of_every_usable_method(
    tiny_bert: torch.nn.Module, inputs: dict[str, torch.Tensor]
) -> None:
    program = capture(tiny_bert, inputs)
    tried = []
    for name in find_methods(TokenMethod):
        drop = parse_spec(f"token-drop:method={name},keep=0.6")
        sites = drop.legality(program)
        if not isinstance(sites, list):
            continue
        reduced = drop.rewrite(program, sites)
        expected = cost(reduced).at(batch=2, tokens=48).flops
        assert counted_flops(reduced, inputs) == pytest.approx(expected, rel=0.01), name
        tried.append(name)
    assert {"random", "tome", "zero-tprune"} <= set(tried)
