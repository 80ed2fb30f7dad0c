"""Diffs show what changed and nothing else."""

from __future__ import annotations

from random_programs import Config, build

from tersor.ir.builder import Builder
from tersor.ir.diff import diff
from tersor.ir.program import Program


def changed_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in ("---", "+++")]


def doubled(program: Program, name: str) -> Program:
    """``program`` with the value called ``name`` doubled before everything that reads it."""
    work = program.edit()
    node = work.find(name)
    twice = Builder(work, node.next, "layers.0").mul(node, 2.0)
    node.replace_all_uses_with(twice, delete_user_cb=lambda user: user is not twice)
    return work


def test_equal_programs_have_an_empty_diff() -> None:
    program = build(Config())
    assert diff(program, program.edit()) == ""
    assert diff(build(Config()), build(Config())) == ""


def test_an_insertion_shows_as_one_line_and_its_readers() -> None:
    program = build(Config(layers=3))
    rest = "@.weight, @.bias) -> f32[batch, tokens, 8]   # layers.0.mlp.down"
    assert changed_lines(diff(program, doubled(program, "gelu_default"))) == [
        f"-  %linear_default_5 = linear(%gelu_default, {rest}",
        "+  %mul_tensor = mul(%gelu_default) {other=2.0} -> f32[batch, tokens, 16]   # layers.0",
        f"+  %linear_default_5 = linear(%mul_tensor, {rest}",
    ]


def test_values_of_separately_built_programs_correspond_by_layer_not_by_number() -> None:
    # The rms program numbers its values otherwise; its linears are the same linears all the same.
    layer, gated = build(Config(layers=2)), build(Config(layers=2, mlp="swiglu"))
    lines = changed_lines(diff(layer, gated))
    assert lines
    assert not any("attention.query" in line or "attention.out" in line for line in lines)


def test_a_change_of_sizes_alone_is_still_shown() -> None:
    program = build(Config(layers=1))
    work = program.edit()
    size = next(node for node in work.graph.nodes if "sym_size" in str(node.target))
    with work.graph.inserting_after(size):
        twin = work.graph.node_copy(size)
    twin.meta = dict(size.meta)
    next(iter(size.users)).replace_input_with(size, twin)
    assert "sym_size" in diff(program, work)
