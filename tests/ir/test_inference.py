"""Remembered shapes are the shapes that inference from scratch finds."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from random_programs import Config, build, programs

from tersor.ir.inference import Inference, signature
from tersor.ir.program import Program
from tersor.ir.shapes import describe, fake_call, fake_mode


@settings(max_examples=5, deadline=None)
@given(programs(layers=2))
def test_a_remembered_shape_is_the_shape_of_the_call(program: Program) -> None:
    infer = Inference(fake_mode(program))
    for node in program.graph.nodes:
        if node.op == "call_function":
            with fake_mode(program), torch.no_grad():
                fresh = fake_call(node)
            assert describe(infer(node)) == describe(fresh)


def test_equal_layers_are_inferred_once() -> None:
    program = build(Config(layers=3))
    infer = Inference(fake_mode(program))
    values = {node.name: infer(node) for node in program.graph.nodes if node.op == "call_function"}
    assert values["attention_default"] is values["attention_default_2"]
    assert values["gelu_default"] is not values["attention_default"]


def test_signatures_tell_apart_what_operators_do() -> None:
    table = [1, 1.0, True, "1", None, [1], (1,), torch.float32, torch.zeros(2, 3), torch.zeros(3, 2).T,
             torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2)]  # fmt: skip
    assert len({signature(value) for value in table}) == len(table)
    assert signature(torch.zeros(2, 3)) == signature(torch.ones(2, 3))
