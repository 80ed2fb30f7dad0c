"""``optimize_model``: what a user hands over comes back faster, measured, and in the model's own structure."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import tersor
from tersor import InputError, LoweringError, Program, PromiseError, RefusedError, SpecError, optimize_model
from tersor.passes.contract import Pass, Promise, Refusal, Site
from tersor.passes.registry import unregistered
from tersor.passes.spec import parse_spec

Batches = list[dict[str, torch.Tensor]]
DROP = "token-drop:method=norm,keep=0.6,layers=0"


def test_one_spec_or_pass_stands_for_a_list_of_one(program: Program) -> None:
    for passes in (DROP, parse_spec(DROP), [DROP], (spec for spec in [DROP])):
        assert [step.spec for step in optimize_model(program, passes, "torch").report.kept][1:] == [DROP]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"passes": 5}, "passes is a int"),
        ({"passes": [DROP, None]}, "a NoneType is no pass"),
        ({"max_deviation": "0.1"}, "max_deviation='0.1' is no deviation"),
        ({"max_deviation": float("nan")}, "max_deviation=nan is no deviation"),
        ({"max_deviation": True}, "max_deviation=True is no deviation"),
        ({"require_speedup": "no"}, "require_speedup='no' is none of"),
        ({"threads": -3}, "threads=-3 is no number of threads"),
        ({"threads": "2"}, "threads='2' is no whole number"),
        ({"threads": True}, "threads=True is no whole number"),
        ({"ops": "portabel"}, "ops='portabel' is unknown; did you mean 'portable'"),
        ({"target": "torch", "compile": "yes"}, "compile='yes' is neither True nor False"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named_before_the_model_is_read(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        optimize_model("a_module_that_must_not_be:imported", **arguments)


@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_without_passes_the_result_is_the_model(
    encoder: torch.nn.Module, program: Program, batches: Batches, target: str
) -> None:
    fast = optimize_model(program, target=target)
    for batch in batches:
        expected, actual = encoder(**batch), fast(**batch)
        assert type(actual) is type(expected)
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(
            actual.last_hidden_state[real], expected.last_hidden_state[real], atol=1e-5, rtol=1e-4
        )


def test_every_target_runs_the_same_rewritten_program(program: Program, batches: Batches) -> None:
    results = [optimize_model(program, [DROP], target)(**batches[1])[0] for target in ("torch", "onnx")]
    real = batches[1]["attention_mask"].bool()
    torch.testing.assert_close(results[0][real], results[1][real], atol=1e-4, rtol=1e-4)


def test_inputs_come_by_position_by_name_or_as_a_tokenizer_gives_them(
    program: Program, batches: Batches
) -> None:
    fast, batch = optimize_model(program, [DROP], "torch"), batches[0]
    expected = fast(**batch)[0]
    for result in (fast(*batch.values()), fast(batch), fast(UserDict(batch)), fast.run(batch)):
        assert torch.equal(result[0], expected)


def test_a_module_is_captured_with_the_first_calibration_batch(batches: Batches) -> None:
    class Sum(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": first + second}

    pair = (torch.randn(2, 3), torch.randn(2, 3))
    fast = optimize_model(Sum(), target="torch", calibration=[pair, (torch.ones(4, 3), torch.ones(4, 3))])
    assert torch.equal(fast(*pair)["sum"], pair[0] + pair[1])
    assert fast.report.samples == 2
    assert fast.manifest.calibrated


def test_the_report_states_promise_measurement_and_cost(program: Program, batches: Batches) -> None:
    fast = optimize_model(program, [DROP], "torch", calibration=batches, require_speedup=False)
    step = fast.report.steps[-1]
    assert (step.family, step.promise, step.verdict) == ("tokens", Promise.APPROXIMATE, "kept")
    assert step.deviation is not None
    assert 0 < step.deviation.overall < 1
    assert step.after is not None
    assert step.before is not None
    assert step.after.flops < step.before.flops


def test_progress_tells_every_step_in_order(program: Program) -> None:
    told: list[tuple[str, int, int]] = []
    optimize_model(program, [DROP], "torch", progress=lambda *step: told.append(step))
    names = [name for name, _, _ in told]
    assert names[0] == "capturing the model"
    assert names[-1] == "comparing torch with the Program"
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for _, _, total in told} == {len(told)}


class Untouchable(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the model was run before the request was checked")


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        ({"passes": ["token-dorp"]}, SpecError, "did you mean 'token-drop'"),
        ({"passes": ["token-drop:kep=0.5"]}, SpecError, "did you mean 'keep'"),
        ({"target": "onxn"}, InputError, "did you mean 'onnx'"),
        ({"treads": 2}, InputError, "did you mean 'threads'"),
        ({"target": "torch", "ops": "portable"}, InputError, "no option 'ops'"),
        ({"calibration": 3}, InputError, "calibration is a int"),
        ({"calibration": []}, InputError, "holds no batch"),
        ({"calibration": [3]}, InputError, "batch 0 of calibration is a int"),
        ({"max_deviation": -0.5}, InputError, "max_deviation"),
        ({"on_violation": "ignore"}, InputError, "on_violation"),
    ],
)
def test_a_wrong_request_is_named_before_the_model_is_touched(
    request_: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        optimize_model(Untouchable(), **request_)


def test_a_calibration_batch_that_does_not_fit_is_named(program: Program, batches: Batches) -> None:
    with pytest.raises(InputError, match="batch 1 of calibration: input 'attention_mask' is missing"):
        optimize_model(
            program, target="torch", calibration=[batches[0], {"input_ids": batches[1]["input_ids"]}]
        )


def test_a_deviation_past_the_budget_raises_or_is_reverted(program: Program, batches: Batches) -> None:
    request: dict[str, Any] = {
        "passes": [DROP], "target": "torch", "calibration": batches, "max_deviation": 1e-9, "require_speedup": False,
    }  # fmt: skip
    with pytest.raises(PromiseError, match="past the budget"):
        optimize_model(program, **request)
    fast = optimize_model(program, **request, on_violation="revert")
    assert [step.verdict for step in fast.report.steps] == ["kept", "reverted"]
    assert torch.allclose(fast(**batches[0])[0], program(**batches[0])[0], atol=1e-6)


@unregistered
@dataclass(frozen=True)
class Busy(Pass):
    """Computes more than the Program did, and the same."""

    name: ClassVar[str] = "busy-for-a-test"
    family: ClassVar[str] = "test"
    promise: ClassVar[Promise] = Promise.EXACT

    def legality(self, program: Program) -> list[Site] | Refusal:
        return [Site(program.output_node.args[0][0].name)]  # type: ignore[index,union-attr]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        from tersor.ir.builder import Builder

        work = program.edit()
        result = work.find(sites[0].node)
        build = Builder(work, work.output_node)
        wide = build.mul(build.weight("busy", torch.ones(700, 700) / 700), build.mean(result, [0, 1, 2]))
        for _ in range(8):
            wide = build.call(torch.ops.aten.matmul.default, wide, wide)
        nothing = build.mul(build.mean(wide, [0, 1]), 0.0)
        work.output_node.replace_input_with(result, build.add(result, nothing))
        return work


def test_a_pass_that_does_not_pay_is_reverted_when_data_is_given(program: Program, batches: Batches) -> None:
    fast = optimize_model(program, [Busy()], "torch", calibration=batches[:1])
    step = fast.report.steps[-1]
    assert step.verdict == "reverted"
    assert "does not pay" in step.reason
    assert step.latency_ratio is not None
    assert step.latency_ratio > 1
    kept = optimize_model(program, [Busy()], "torch", calibration=batches[:1], require_speedup=False)
    assert kept.report.steps[-1].verdict == "kept"


def test_a_refused_pass_names_the_reason() -> None:
    program = tersor.capture(torch.nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(RefusedError, match="no attention"):
        optimize_model(program, [DROP], "torch")


def test_an_exported_file_is_plain_onnx_with_the_report_inside(
    program: Program, batches: Batches, tmp_path: Path
) -> None:
    import json

    import onnx
    import onnxruntime

    fast = optimize_model(program, [DROP], "torch")
    file = tmp_path / "new" / "model.onnx"
    assert fast.export_onnx(file) == [file]
    assert list(file.parent.iterdir()) == [file]
    model = onnx.load(file)
    assert {item.domain for item in model.opset_import} == {""}
    metadata = {item.key: item.value for item in model.metadata_props}
    assert json.loads(metadata["tersor.passes"])[-1].startswith("token-drop")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {name: value.numpy() for name, value in batches[0].items()})
    torch.testing.assert_close(torch.from_numpy(result), fast(**batches[0])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("ops", "message"), [("portabel", "portable"), ("", "ops=''")])
def test_an_export_with_unknown_operators_leaves_nothing(
    program: Program, tmp_path: Path, ops: str, message: str
) -> None:
    fast = optimize_model(program, target="torch")
    with pytest.raises(InputError, match=message):
        fast.export_onnx(tmp_path / "model.onnx", ops=ops)
    assert not list(tmp_path.iterdir())


def test_a_lowering_that_computes_something_else_is_not_handed_over(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersor.codegen.torch import TorchExecutable

    original = TorchExecutable.run
    monkeypatch.setattr(
        TorchExecutable, "run", lambda self, inputs: tuple(1.01 * t for t in original(self, inputs))
    )
    with pytest.raises(LoweringError, match="'last_hidden_state' differs by"):
        optimize_model(program, target="torch")


def test_a_size_that_the_lowering_has_fixed_is_found(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sympy

    from tersor.codegen.onnx.sizes import Sizes

    fast = optimize_model(program, target="torch")
    sound, example = Sizes.value, {symbol: program.sizes()[name] for symbol, name in program.symbols.items()}

    def fixed(self: Sizes, expr: sympy.Expr) -> object:
        return sound(self, sympy.Integer(int(expr.subs({s: example[str(s)] for s in expr.free_symbols}))))

    monkeypatch.setattr(Sizes, "value", fixed)
    for lower in (
        lambda: optimize_model(program, target="onnx"),
        lambda: fast.export_onnx(tmp_path / "m.onnx"),
    ):
        with pytest.raises(LoweringError):
            lower()
    assert not list(tmp_path.iterdir())


def test_public_names_are_there_and_unknown_ones_are_not() -> None:
    for name in tersor.__all__:
        assert getattr(tersor, name).__name__ == name
    assert set(tersor.__all__) <= set(dir(tersor))
    with pytest.raises(AttributeError, match="optimise_model"):
        tersor.optimise_model  # noqa: B018


def test_positions_follow_the_models_signature_however_examples_were_ordered(
    encoder: torch.nn.Module, batches: Batches
) -> None:
    program = tersor.capture(encoder, dict(reversed(batches[1].items())))
    assert [spec.name for spec in program.inputs] == ["input_ids", "attention_mask"]
    ids, mask = batches[1]["input_ids"], batches[1]["attention_mask"]
    real = mask.bool()
    torch.testing.assert_close(program(ids, mask)[0][real], encoder(ids, mask)[0][real], atol=1e-5, rtol=1e-4)
