"""A Program at one size of every dimension computes, costs and is rewritten as the one it came from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_programs import Config, build, configs
from torch import nn

from tersor.ir.analyses.cost import cost
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.fix_sizes import fix_sizes
from tersor.ir.program import Program
from tersor.ir.verifier import verify
from tersor.passes.contract import Refusal
from tersor.passes.spec import parse_spec

SLOW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


def _reduced(program: Program, spec: str) -> Program | None:
    instance = parse_spec(spec)
    sites = instance.legality(program)
    return None if isinstance(sites, Refusal) else instance.rewrite(program, sites)


@SLOW
@given(configs())
def test_random_transformers_compute_and_cost_the_same(config: Config) -> None:
    program = build(config)
    fixed = fix_sizes(program, program.sizes())
    verify(fixed)
    assert not fixed.symbols
    assert not [node for node in fixed.graph.nodes if "sym_size" in str(node.target)]
    inputs = program.example_inputs
    for want, got in zip(program.run(inputs), fixed.run(inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert cost(fixed).at() == cost(program).at(**program.sizes())


@SLOW
@given(configs())
def test_random_transformers_are_reduced_to_the_same_cost(config: Config) -> None:
    program = build(config)
    reduced = _reduced(program, "token-drop:method=norm,keep=0.6")
    fixed = _reduced(fix_sizes(program, program.sizes()), "token-drop:method=norm,keep=0.6")
    assert (reduced is None) == (fixed is None)
    if reduced is not None and fixed is not None:
        assert cost(fixed).at().flops == cost(reduced).at(**program.sizes()).flops


def test_sizes_need_not_be_those_of_the_example() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    program = capture(model, torch.randn(2, 8, 16))
    fixed = fix_sizes(program, {"batch": 3, "tokens": 11})
    value = torch.randn(3, 11, 16)
    torch.testing.assert_close(fixed(value), program(value))
    assert [spec.shape for spec in fixed.outputs] == [(3, 11, 16)]
    with pytest.raises(InputError, match="11"):
        fixed(torch.randn(3, 12, 16))
