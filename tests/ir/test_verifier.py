"""The verifier accepts what the IR allows and names the node, its layer and the reason for what it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from random_programs import Config, build, programs

from tersor.ir.builder import Builder
from tersor.ir.errors import VerifierError
from tersor.ir.program import Program, TensorSpec
from tersor.ir.structure import Structure
from tersor.ir.verifier import verify, violations

aten = torch.ops.aten


@settings(max_examples=8, deadline=None)
@given(programs(layers=1))
def test_every_random_program_is_valid(program: Program) -> None:
    verify(program)


def no_value(program: Program) -> None:
    del program.find("linear_default").meta["val"]


def wrong_value(program: Program) -> None:
    node = program.find("linear_default")
    node.meta["val"] = program.find("linear_default_4").meta["val"]


def wrong_dtype(program: Program) -> None:
    node = program.find("linear_default")
    node.meta["val"] = node.meta["val"].to(torch.float64)


def in_place(program: Program) -> None:
    program.find("gelu_default").target = aten.gelu_.default


def foreign_function(program: Program) -> None:
    program.find("gelu_default").target = torch.nn.functional.gelu


def method_call(program: Program) -> None:
    node = program.find("gelu_default")
    with program.graph.inserting_before(node):
        other = program.graph.call_method("relu", node.args)
    other.meta = dict(node.meta)
    node.replace_all_uses_with(other)


def bad_dialect_call(program: Program) -> None:
    node = program.find("linear_default")
    g = Builder(program, program.output_node, "layers.0")
    scores = g.mean(node, [2])
    index = g.op("select_tokens", scores, keep_per_mille=700)
    index.kwargs = {"keep_per_mille": 0}


def rejected_operands(program: Program) -> None:
    node = program.find("linear_default_5")
    node.args = (node.args[0], program.find("linear_default").args[1], None)


def lost_weight(program: Program) -> None:
    del program.weights["layers.0.mlp.up.weight"]


def reshaped_weight(program: Program) -> None:
    name = "layers.0.mlp.up.weight"
    program.weights[name] = program.weights[name].T.contiguous()


def nested_output(program: Program) -> None:
    program.output_node.args = ((program.output_node.args[0],),)


def use_before_definition(program: Program) -> None:
    program.find("linear_default").args = program.find("linear_default_5").args


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_value, r"linear_default .*in layers\.0\.attention\.query: it has no meta\['val'\]"),
        (
            wrong_value,
            r"linear_default .*: its stored value is f32\[.*16\], but its operands give f32\[.*8\]",
        ),
        (wrong_dtype, r"linear_default .*: its stored value is f64"),
        (in_place, r"gelu_default .*in layers\.0\.mlp\.up: it writes to an operand"),
        (foreign_function, r"gelu_default .*neither an ATen operator"),
        (method_call, r"relu .*call_method nodes are not part of the IR"),
        (bad_dialect_call, r"select_tokens_default .*in layers\.0: keep_per_mille 0 is outside"),
        (rejected_operands, r"linear_default_5 .*in layers\.0\.mlp\.down: .*rejects its operands"),
        (
            lost_weight,
            r"layers_0_mlp_up_weight .*in layers\.0\.mlp\.up: weight .* is not in Program\.weights",
        ),
        (reshaped_weight, r"layers_0_mlp_up_weight .*the weight f32\[8, 16\]"),
        (nested_output, r"output: the output is not a flat tuple of nodes"),
        (use_before_definition, r"the graph is malformed: .*linear_default.*used before.*$"),
    ],
)
def test_a_broken_program_is_named_by_node_layer_and_reason(
    damage: Callable[[Program], None], reason: str
) -> None:
    program = build(Config(layers=1)).edit()
    damage(program)
    with pytest.raises(VerifierError, match=reason):
        verify(program)


def test_a_weight_that_no_node_reads_is_dead() -> None:
    program = build(Config(layers=1)).edit()
    program.weights["spare"] = torch.zeros(1)
    assert list(violations(program)) == [
        "weight 'spare' is dead: no node reads it; remove it from Program.weights"
    ]


def test_declared_inputs_and_outputs_must_be_what_the_graph_has() -> None:
    program = build(Config(layers=1))
    wrong_input = replace(program, inputs=(TensorSpec("x", ("batch", "tokens", 8), torch.float32),))
    wrong_output = replace(program, outputs=(TensorSpec("output", ("batch", 8), torch.float32),))
    with pytest.raises(VerifierError, match=r"placeholders \['features'\] are not the inputs \['x'\]"):
        verify(wrong_input)
    with pytest.raises(VerifierError, match=r"'output' is declared \['batch', 8\]"):
        verify(wrong_output)


def test_results_must_be_as_many_as_the_structure_has_places_for() -> None:
    program = build(Config(layers=1))
    pair = Structure("tuple", (Structure("tensor"), Structure("tensor")))
    with pytest.raises(VerifierError, match="1 results, but the structure has 2 tensors"):
        verify(replace(program, structure=pair))


def test_results_must_be_as_many_as_the_outputs_declared() -> None:
    program = build(Config(layers=1))
    with pytest.raises(VerifierError, match="1 results, but 2 outputs are declared"):
        verify(replace(program, outputs=program.outputs * 2))


def test_a_dimension_that_got_fixed_is_reported() -> None:
    program = build(Config(layers=1, seed=1)).edit()
    tokens = program.find("features").meta["val"].shape[1]
    assert tokens == 7  # Asking a symbol for its value fixes it: the mistake that this rule is there for.
    assert any(re.search("dimension 'tokens' was fixed to 7", why) for why in violations(program))


def test_shapes_are_not_inferred_when_they_are_not_asked_for() -> None:
    program = build(Config(layers=1)).edit()
    wrong_dtype(program)
    verify(program, shapes=False)
