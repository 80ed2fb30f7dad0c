"""A clean-up pass of one's own runs in every pipeline once it is defined, and in no place that a list gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from random_programs import Config, build
from torch import fx, nn

from tersor.ir.builder import Builder
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program
from tersor.passes.cleanup import Cleanup
from tersor.passes.cleanup.cleanup import parts
from tersor.passes.cleanup.equivalence import Equivalence
from tersor.passes.cleanup.part import Part
from tersor.passes.contract import Site
from tersor.passes.pipeline import run
from tersor.passes.registry import registered, unregistered

aten = torch.ops.aten


@unregistered
@dataclass(frozen=True)
class DoubleNegation(Equivalence):
    """The negative of a negative is the value."""

    name: ClassVar[str] = "test-double-negation"

    def equal_to(self, node: fx.Node) -> fx.Node | None:
        source = node.args[0] if node.args else None
        if node.target is not aten.neg.default or not isinstance(source, fx.Node):
            return None
        return source.args[0] if source.target is aten.neg.default else None  # type: ignore[return-value]


class NegatesTwice(nn.Module):
    """The second negation shows only once the dropout is gone, and the dead relu only once both are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(-nn.functional.dropout(-(x + 1), training=False))


def operators(program: Program) -> list[str]:
    return [node.target._opname for node in program.graph.nodes if node.op == "call_function"]


def test_every_pipeline_runs_a_part_that_has_been_defined() -> None:
    program = capture(NegatesTwice().eval(), torch.randn(2, 3))
    assert operators(run(program, [])[0]) == ["add", "neg", "neg", "relu"]
    with registered(DoubleNegation):
        assert operators(run(program, [])[0]) == ["add", "relu"]
        assert operators(run(program, ["identities"])[0]) == ["add", "relu"]
        assert Cleanup().legality(run(program, [])[0]) == []


# Its name comes first, so that it would be asked first if names decided.
@unregistered
@dataclass(frozen=True)
class AddsAWeight(Part):
    """Write a number that is added as a weight, where the others have nothing left to do."""

    name: ClassVar[str] = "a-test-adds-a-weight"
    grows_weights: ClassVar[bool] = True

    def legality(self, program: Program) -> list[Site]:
        return [Site(n.name) for n in program.graph.nodes if n.target is aten.add.Tensor and n.args[1] == 1]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        left = {part.name: part.legality(program) for part in parts() if not part.grows_weights}
        assert not any(left.values()), left
        work = program.edit()
        for site in sites:
            node = work.find(site.node)
            node.update_arg(1, Builder(work, node).weight("one", torch.ones(1)))
        return work


def test_a_part_that_adds_weights_waits_until_the_others_find_nothing() -> None:
    program = capture(NegatesTwice().eval(), torch.randn(2, 3))
    with registered(AddsAWeight):
        assert next(part.name for part in parts()) == AddsAWeight.name
        result, _ = run(program, [])
    assert list(result.weights) == ["one"]


def test_clean_up_is_not_timed_and_never_has_to_pay() -> None:
    def measure(*_: Program) -> float:
        raise AssertionError("clean-up was timed")

    program = build(Config(layers=1, noise=True))
    names = [Cleanup.name, *(part.name for part in parts())]
    for name in names:
        _, report = run(program, [name], measure=measure, require_speedup=True)
        assert {step.verdict for step in report.steps} <= {"kept", "unchanged"}


@pytest.mark.parametrize("where", ["legality", "rewrite"])
def test_a_part_that_fails_is_named(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    program = capture(NegatesTwice().eval(), torch.randn(2, 3))
    monkeypatch.setattr(AddsAWeight, where, fails)
    with (
        registered(AddsAWeight),
        pytest.raises(InputError, match=r"your pass 'a-test-adds-a-weight' fails .*by nothing"),
    ):
        run(program, [])
