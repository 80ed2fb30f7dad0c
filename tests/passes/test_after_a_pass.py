"""What the pipeline does after any pass, so that no pass has to: nothing dead is left, and no analysis is stale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from random_programs import Config, build

from tersor.ir.analyses.layers import layers
from tersor.ir.program import Program
from tersor.ir.text import program_text
from tersor.passes.contract import Pass, Promise, Site
from tersor.passes.pipeline import run
from tersor.passes.registry import registered, unregistered


@unregistered
@dataclass(frozen=True)
class SkipFirst(Pass):
    """Leave the first block out, and everything that only it read where it is."""

    name: ClassVar[str] = "test-skip-first"
    family: ClassVar[str] = "test"
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    def legality(self, program: Program) -> list[Site]:
        return [Site(program.analysis(layers)[0].attention[0].name)]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        first = work.analysis(layers)[0]
        for user in list(first.end.users):
            user.replace_input_with(first.end, first.start)
        work.weights["left over"] = torch.zeros(1)
        return work


@dataclass(frozen=True)
class GivesBack(SkipFirst):
    """Return the Program that it was given."""

    name: ClassVar[str] = "test-gives-back"
    # A family's name decides nothing.
    family: ClassVar[str] = "cleanup"

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        return program


@dataclass(frozen=True)
class FreeOfCharge(GivesBack):
    """The same, and not there for speed."""

    name: ClassVar[str] = "test-free-of-charge"
    family: ClassVar[str] = "test"
    must_pay: ClassVar[bool] = False


@pytest.fixture(autouse=True, scope="module")
def _found_by_name() -> Iterator[None]:
    with registered(SkipFirst):
        yield


def test_a_pass_need_not_drop_what_nothing_reads_nor_forget_analyses() -> None:
    program = build(Config(layers=4))
    result, report = run(program, [SkipFirst(), SkipFirst()])
    assert [step.verdict for step in report.steps[1:]] == ["kept", "kept"]
    assert len(result.analysis(layers)) == 2
    read = {node.target for node in result.graph.nodes if node.op == "get_attr"}
    assert result.weights.keys() == read
    assert len(result.weights) < len(program.weights)


def test_a_program_that_was_given_back_is_as_it_was() -> None:
    program = build(Config(layers=1, noise=True))
    before = program_text(program, full=True)
    run(program, [GivesBack()])
    assert program_text(program, full=True) == before


def test_a_pass_itself_says_whether_it_has_to_pay() -> None:
    program = build(Config(layers=2))
    _, report = run(program, [GivesBack(), FreeOfCharge()], measure=lambda *_: 1.0, require_speedup=True)
    assert [(s.verdict, s.latency_ratio) for s in report.steps[1:]] == [("reverted", 1.0), ("kept", None)]
