"""The pipeline keeps what keeps its promise, and says why it did not keep the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from random_programs import Config, build, configs, inputs_of
from rich.console import Console

from tersor.ir.analyses.cost import cost
from tersor.ir.builder import Builder
from tersor.ir.errors import InputError, PromiseError, RefusedError, VerifierError
from tersor.ir.program import Program
from tersor.ir.text import program_text
from tersor.passes.contract import Pass, Promise, Refusal, Site
from tersor.passes.pipeline import run
from tersor.passes.registry import registered, unregistered

aten = torch.ops.aten


@unregistered
@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the output: approximate, by as much as asked."""

    name: ClassVar[str] = "test-scale"
    family: ClassVar[str] = "test"
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    factor: float = 1.0
    shift: float = 0.0

    def legality(self, program: Program) -> list[Site] | Refusal:
        return [Site(program.output_node.args[0][0].name)]  # type: ignore[index,union-attr]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        node = work.find(sites[0].node)
        g = Builder(work, work.output_node, "test")
        work.output_node.args = ((g.add(g.mul(node, self.factor), self.shift),),)
        return work


@dataclass(frozen=True)
class ClaimsExact(Scale):
    """Promises to change nothing."""

    name: ClassVar[str] = "test-claims-exact"
    promise: ClassVar[Promise] = Promise.EXACT


@dataclass(frozen=True)
class ClaimsGreedy(Scale):
    """Promises to keep the top token."""

    name: ClassVar[str] = "test-claims-greedy"
    promise: ClassVar[Promise] = Promise.GREEDY_EXACT


@dataclass(frozen=True)
class Refuses(Scale):
    """Cannot act on a graph with a gelu."""

    name: ClassVar[str] = "test-refuses"

    def legality(self, program: Program) -> list[Site] | Refusal:
        gelus = [node for node in program.graph.nodes if node.target is aten.gelu.default]
        return Refusal("a gelu is in the way", gelus[0].name) if gelus else super().legality(program)


@dataclass(frozen=True)
class Breaks(Scale):
    """Leaves the output with another dtype than it is declared with."""

    name: ClassVar[str] = "test-breaks"

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        work = program.edit()
        g = Builder(work, work.output_node, "test")
        work.output_node.args = ((g.call(aten.to.dtype, work.find(sites[0].node), torch.float64),),)
        return work


@dataclass(frozen=True)
class FindsNothing(Scale):
    """Is legal and has nothing to do."""

    name: ClassVar[str] = "test-finds-nothing"

    def legality(self, program: Program) -> list[Site] | Refusal:
        return []


@pytest.fixture(autouse=True, scope="module")
def _found_by_name() -> Iterator[None]:
    with registered(Scale):
        yield


PROGRAM = build(Config(layers=1, noise=True, padding=True))
LOGITS = build(Config(layers=1, output="logits", dynamic=False))


def test_clean_up_runs_without_being_asked() -> None:
    before = program_text(PROGRAM, full=True)
    program, report = run(PROGRAM, [])
    assert [step.spec for step in report.steps] == ["cleanup"]
    assert len(program.graph.nodes) < len(PROGRAM.graph.nodes) - 40
    assert report.steps[0].deviation is not None
    assert report.steps[0].deviation.is_rounding
    assert program_text(PROGRAM, full=True) == before


def test_an_approximate_pass_is_measured_and_kept_within_the_budget() -> None:
    program, report = run(PROGRAM, [Scale(shift=0.05)], max_deviation=0.1)
    step = report.steps[1]
    assert step.verdict == "kept"
    assert step.deviation is not None
    want, got = (p.run(PROGRAM.example_inputs)[0] for p in (PROGRAM, program))
    real = PROGRAM.example_inputs["attention_mask"].bool()
    cosine = torch.nn.functional.cosine_similarity(want, got, dim=-1)[real]
    assert step.deviation.overall == pytest.approx(float((1 - cosine).mean()), abs=1e-6)
    assert report.deviation == step.deviation


def test_the_budget_holds_for_all_passes_together() -> None:
    once = run(PROGRAM, [Scale(shift=0.2)])[1].deviation
    assert once is not None
    _, report = run(
        PROGRAM,
        [Scale(shift=0.2), Scale(shift=0.2)],
        max_deviation=once.overall * 1.5,
        on_violation="revert",
    )
    assert [step.verdict for step in report.steps] == ["kept", "kept", "reverted"]
    assert "past the budget of" in report.steps[2].reason


def test_a_pass_past_the_budget_is_an_error_or_reverted() -> None:
    with pytest.raises(PromiseError, match=r"test-scale:shift=2.0 deviates by .*, past the budget of 0.001"):
        run(PROGRAM, ["test-scale:shift=2"], max_deviation=0.001)
    program, report = run(PROGRAM, ["test-scale:shift=2"], max_deviation=0.001, on_violation="revert")
    assert report.steps[1].verdict == "reverted"
    assert report.steps[1].after == report.steps[1].before
    clean, _ = run(PROGRAM, [])
    assert program_text(program) == program_text(clean)


def test_an_exact_pass_that_changes_outputs_is_caught() -> None:
    with pytest.raises(PromiseError, match=r"promised exact outputs and changes output by up to 0\.01"):
        run(PROGRAM, [ClaimsExact(shift=0.01)])


def test_an_exact_pass_after_an_approximate_one_is_compared_with_what_it_was_given() -> None:
    _, report = run(PROGRAM, [Scale(shift=0.3), ClaimsExact()])
    assert [step.verdict for step in report.steps] == ["kept", "kept", "kept"]


def test_greedy_exact_is_about_the_top_token_alone() -> None:
    _, report = run(LOGITS, [ClaimsGreedy(factor=3.0, shift=0.5)])
    assert report.steps[1].verdict == "kept"
    with pytest.raises(PromiseError, match=r"promised the same top tokens and keeps .*% of them"):
        run(LOGITS, [ClaimsGreedy(factor=-1.0)])


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_nan_is_a_violation_whatever_the_budget(factor: float) -> None:
    with pytest.raises(PromiseError, match="makes output not finite"):
        run(PROGRAM, [Scale(factor=factor)])


def test_a_refusal_names_node_layer_and_reason() -> None:
    message = r"test-refuses cannot act here: a gelu is in the way at gelu_default in layers\.0\.mlp\.up"
    with pytest.raises(RefusedError, match=message):
        run(PROGRAM, [Refuses()])
    _, report = run(PROGRAM, [Refuses(), Scale()], on_violation="revert")
    assert [step.verdict for step in report.steps] == ["kept", "refused", "kept"]
    assert "a gelu is in the way" in report.steps[1].reason


def test_a_pass_with_nothing_to_do_is_reported_as_unchanged() -> None:
    _, report = run(PROGRAM, [FindsNothing()])
    assert (report.steps[1].verdict, report.steps[1].reason) == ("unchanged", "nothing to do")


def test_a_malformed_result_names_the_pass_and_is_a_defect_of_tersors_own_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match=r"your pass 'test-breaks' .*: output: 'output' is declared"):
        run(PROGRAM, [Breaks()])
    monkeypatch.setattr(Breaks, "__module__", "tersor.passes.breaks")
    with pytest.raises(
        VerifierError, match=r"test-breaks made a malformed program: output: 'output' is declared"
    ):
        run(PROGRAM, [Breaks()])


@unregistered
@dataclass(frozen=True)
class FixesASize(Scale):
    """Takes the number of tokens for a number, as ``int(x.shape[1])`` does."""

    name: ClassVar[str] = "test-fixes-a-size"

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        assert int(program.find(sites[0].node).meta["val"].shape[1]) > 0
        return super().rewrite(program, sites)


def test_a_program_whose_size_a_pass_has_fixed_is_to_be_captured_again() -> None:
    program = build(Config(dynamic=True))
    with pytest.raises(InputError, match=r"your pass 'test-fixes-a-size' .* dimension '\w+' was fixed to"):
        run(program, [FixesASize()])
    with pytest.raises(InputError, match=r"was fixed to .* capture the model again"):
        run(program, [Scale(shift=0.1)])


def test_a_pass_that_does_not_pay_is_reverted_when_speed_is_required() -> None:
    calls: list[tuple[int, int]] = []

    def measure(before: Program, after: Program) -> float:
        calls.append((len(before.graph.nodes), len(after.graph.nodes)))
        return 1.25 if len(calls) == 1 else 0.8

    _, report = run(PROGRAM, [Scale(shift=0.1), Scale(shift=0.2)], measure=measure, require_speedup=True)
    assert [step.verdict for step in report.steps] == ["kept", "reverted", "kept"]
    assert report.steps[1].reason == "it does not pay: the result takes 1.250 times as long"
    assert [step.latency_ratio for step in report.steps] == [None, 1.25, 0.8]
    # The second pass was timed against the Program without the reverted one.
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.999, "kept"), (1.0, "reverted"), (1.001, "reverted"), (math.nan, "reverted")]
)
def test_a_pass_pays_where_the_result_is_faster_by_however_little(ratio: float, verdict: str) -> None:
    _, report = run(PROGRAM, [Scale(shift=0.1)], measure=lambda *_: ratio, require_speedup=True)
    assert report.steps[1].verdict == verdict


def test_speed_is_reported_but_not_required_unless_asked() -> None:
    _, report = run(PROGRAM, [Scale()], measure=lambda *_: 1.5)
    assert (report.steps[1].verdict, report.steps[1].latency_ratio) == ("kept", 1.5)
    with pytest.raises(InputError, match="require_speedup needs measure="):
        run(PROGRAM, [], require_speedup=True)


def test_calibration_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(InputError, match="pass calibration="):
        run(PROGRAM, [], calibration=[])
    with pytest.raises(InputError, match="'attention_mask' is missing"):
        run(PROGRAM, [], calibration=[{"features": torch.zeros(1, 3, 8)}])
    spoiled = {**PROGRAM.example_inputs, "features": torch.full((2, 7, 8), math.nan)}
    with pytest.raises(InputError, match="not finite"):
        run(PROGRAM, [], calibration=spoiled)
    with pytest.raises(InputError, match="neither 'raise' nor 'revert'"):
        run(PROGRAM, [], on_violation="ignore")  # type: ignore[arg-type]


def test_costs_are_those_at_the_calibration_size() -> None:
    config = Config(layers=1, noise=True, padding=True)
    samples = [inputs_of(PROGRAM, config, batch=3, tokens=5, seed=seed) for seed in range(2)]
    program, report = run(PROGRAM, [Scale()], calibration=samples)
    assert (report.sizes, report.samples) == ({"batch": 3, "tokens": 5}, 2)
    assert report.before == cost(PROGRAM).at(batch=3, tokens=5)
    assert report.after == cost(program).at(batch=3, tokens=5)


def test_the_report_reads_as_text_table_and_json() -> None:
    _, report = run(PROGRAM, [Scale(factor=math.nan), Refuses(), Scale(shift=0.1)], on_violation="revert")
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [step["verdict"] for step in data["steps"]] == ["kept", "reverted", "refused", "kept"]
    assert data["steps"][1]["deviation"]["overall"] == "inf"
    assert data["steps"][3]["before"]["flops"] == report.steps[3].before.flops  # type: ignore[union-attr]
    console = Console(file=StringIO(), width=200)
    console.print(report.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in (str(report), shown):
        assert "test-scale:shift=0.1" in text
        assert "a gelu is in the way" in text
        assert "makes output not finite" in text


def test_progress_is_told_of_every_pass() -> None:
    told: list[str] = []
    run(PROGRAM, [Scale(shift=0.5)], progress=told.append)
    assert told == ["cleanup", "test-scale:shift=0.5"]


@settings(max_examples=6, deadline=None)
@given(configs(layers=1))
def test_random_transformers_come_out_of_the_empty_pipeline_unchanged(config: Config) -> None:
    program = build(config)
    rewritten, report = run(program, [])
    assert report.deviation is not None
    assert report.deviation.is_rounding
    sizes = {"batch": 1, "tokens": 4} if config.dynamic else {"batch": config.batch, "tokens": config.tokens}
    inputs = inputs_of(program, config, seed=9, **sizes)
    for want, got in zip(program.run(inputs), rewritten.run(inputs), strict=True):
        torch.testing.assert_close(got, want)
