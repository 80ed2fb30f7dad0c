"""A Program's analyses are of its graph as it stands, and ending a rewrite leaves nothing that nobody reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from random_programs import Config, build

from tersor.ir.analyses.layers import layers
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.text import program_text
from tersor.ir.verifier import verify

aten = torch.ops.aten


def skip_first(program: Program) -> None:
    """Let the second block of ``program``, which is being edited, read what the first one read."""
    first = program.analysis(layers)[0]
    for user in list(first.end.users):
        user.replace_input_with(first.end, first.start)


def nodes_of(program: Program) -> list[str]:
    return [node.name for node in program.graph.nodes]


def test_an_analysis_is_computed_once_while_the_graph_stays_as_it_is() -> None:
    program = build(Config(layers=3))
    assert program.analysis(layers) is program.analysis(layers)


def test_an_analysis_asked_for_before_a_rewrite_is_not_the_answer_after_it() -> None:
    work = build(Config(layers=3)).edit()
    assert len(work.analysis(layers)) == 3
    skip_first(work)
    assert len(work.finished().analysis(layers)) == 2


def another_operator(program: Program) -> None:
    program.find("gelu_default").target = aten.relu.default


def another_argument(program: Program) -> None:
    node = program.find("gelu_default")
    node.kwargs = {"approximate": "tanh"}


def another_value(program: Program) -> None:
    node = program.find("gelu_default")
    node.meta["val"] = node.meta["val"].double()


def another_order(program: Program) -> None:
    program.find("gelu_default").append(program.graph.get_attr("a weight"))


def another_weight(program: Program) -> None:
    name = next(iter(program.weights))
    program.weights[name] = program.weights[name] + 1


def another_range(program: Program) -> None:
    program.ranges = program.ranges | {"tokens": (4, 9)}


@pytest.mark.parametrize(
    "change",
    [
        another_operator,
        another_argument,
        another_value,
        another_order,
        another_weight,
        another_range,
    ],
)
def test_whatever_an_analysis_may_read_makes_it_anew(change: Callable[[Program], None]) -> None:
    work = build(Config(layers=1)).edit()

    def analysis(_: Program) -> object:
        return object()

    before = work.analysis(analysis)
    change(work)
    after = work.analysis(analysis)
    assert after is not before
    assert work.analysis(analysis) is after


def test_a_program_made_from_another_has_analyses_of_its_own() -> None:
    program = build(Config(layers=2))
    known = program.analysis(layers)
    other = replace(program, ranges={"tokens": (2, 9)})
    assert other.analysis(layers) is not known
    assert program.analysis(layers) is known


def test_a_finished_rewrite_has_no_value_and_no_weight_that_nothing_reads() -> None:
    program = build(Config(layers=3))
    before = program_text(program, full=True)
    work = program.edit()
    skip_first(work)
    g = Builder(work, work.output_node)
    g.call(aten.relu.default, g.add(work.find(nodes_of(work)[0]), g.weight("unread", torch.ones(1))))
    work.weights["left over"] = torch.ones(1)
    assert work.finished() is work
    verify(work)
    read = {node.target for node in work.graph.nodes if node.op == "get_attr"}
    assert work.weights.keys() == read
    assert all(node.users for node in work.graph.nodes if node.op in ("call_function", "get_attr"))
    assert len(work.weights) < len(program.weights)
    assert program_text(program, full=True) == before


def test_finishing_keeps_inputs_that_nothing_reads() -> None:
    work = build(Config(layers=1, padding=True)).edit()
    work.output_node.args = ((next(n for n in work.graph.nodes if n.op == "placeholder"),),)
    work.finished()
    assert [node.target for node in work.graph.nodes if node.op == "placeholder"] == [
        spec.name for spec in work.inputs
    ]
    assert work.weights == {}
