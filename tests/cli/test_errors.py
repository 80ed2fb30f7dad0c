"""Whatever is wrong with a request is said in one line, with the nearest right name and a documented exit code."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tersor.cli.app import as_options
from tersor.cli.exit_codes import ExitCode, code_of
from tersor.ir import errors as kinds

DROP = "token-drop:method=norm,keep=0.6,layers=0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convrt"], "Did you mean 'convert'"),
        (["convert", "m", "--tagret", "onnx"], "did you mean --target"),
        (["convert", "m"], "Missing option '--out'"),
        (["convert", "m", "-o", "{tmp}/out", "-p", "token-dorp"], "did you mean 'token-drop'"),
        (["convert", "m", "-o", "{tmp}/out", "-p", "token-drop:method=tomee"], "did you mean 'tome'"),
        (["convert", "m", "-o", "{tmp}/out", "-p", "token-drop:keep"], "not of the form key=value"),
        (["convert", "m", "-o", "{tmp}/out", "--target", "onx"], "did you mean 'onnx'"),
        (["convert", "m", "-o", "{tmp}/out", "--target", "torch", "--ops", "ort"], "no option 'ops'"),
        (["convert", "m", "-o", "{tmp}/out", "--on-violation", "rais"], "'rais' is not one of"),
        (["convert", "m", "-o", "{tmp}/out", "--max-deviation", "-1"], "--max-deviation"),
        (["convert", "m", "-o", "{tmp}/out", "--threads", "0"], "--threads"),
        (["convert", "m", "-o", "{tmp}/out", "--calibration", "x.pt"], "safetensors or .npz"),
        (["convert", "{tmp}/nowhere", "-o", "{tmp}/out"], "no model at"),
        (["convert", "no_such_module:make", "-o", "{tmp}/out"], "cannot import"),
        (["convert", "json:nothing", "-o", "{tmp}/out"], "json has no 'nothing'"),
        (["convert", "timm:vit_tiny_patch16_224", "-o", "{tmp}/out"], "names no weights"),
        (["inspect", "{tmp}/nowhere"], "no model at"),
        (["passes", "tome"], "there is no pass 'tome'"),
        (["verify", "{tmp}/nowhere"], "no such folder"),
        (["bench", "{tmp}", "--against", "m"], "no manifest.json"),
        (["bench", "{tmp}", "--against", "m", "--size", "tokens"], "not of the form NAME=N"),
        (["diff", "{tmp}/nowhere", "b"], "no model at"),
        (["--json-"], "no option '--json-' (see tersor --help)"),
        (["convert", "m", "-o", ""], "the name of the place to write is empty"),
        (["convert", "m", "-o", "/proc/tersor-out"], "cannot write /proc/tersor-out"),
        (["convert", "m", "-o", "/dev/null/out"], "/dev/null is a file"),
        (["convert", "m", "-o", "{tmp}/out", "--ops", "portabel"], "did you mean 'portable'"),
        (["convert", "m", "-o", "{tmp}/out", "--threads", "100000"], "--threads"),
        (["bench", "m", "--against", "m", "--threads", "100000"], "--threads"),
        (["convert", "m", "-o", "{tmp}/out", "--import", "no_such_module"], "cannot import no_such_module"),
        (["convert", "m", "-o", "{tmp}/out", "--example-inputs", "x.pt"], "safetensors or .npz"),
        (["convert", "m", "-o", "{tmp}/out", "--dynamic", "non"], "did you mean 'none'"),
        (["inspect", "m", "--dynamic", "Auto"], "did you mean 'auto'"),
        (["inspect", "m", "--dynamic", "x"], "none of INPUT:DIM=NAME; there is auto, none"),
        (["diff", "m", "m", "--dynamic", "x:batch=0"], "such as input_ids:0=batch,1=tokens"),
        (["inspect", "m", "--dynamic", "x:0=batch,"], "such as input_ids:0=batch,1=tokens"),
        (["inspect", "m", "--dynamic", "x:0=a,0=b"], "names a dim twice"),
        (["inspect", "m", "--dynamic", "x:0=a", "--dynamic", "x:1=b"], "names input 'x' twice"),
        (["inspect", "m", "--dynamic", "x:0=a", "--dynamic", "none"], "'none' stands alone"),
        (["passes", "--import", "{tmp}/nowhere.py"], "there is no file"),
        (["passes", "--import", "a-b"], "cannot import 'a-b'"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_two(
    tersor: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = tersor(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert outcome.code == ExitCode.USAGE, outcome
    assert message in outcome.error
    assert outcome.stdout == ""
    assert not list(tmp_path.iterdir())


def test_with_json_the_error_is_json_on_stdout_too(tersor: Any, tmp_path: Path) -> None:
    outcome = tersor("convert", "m", "-o", tmp_path / "out", "-p", "nothing", "--json")
    assert outcome.json["error"]["exit_code"] == outcome.code == 2
    assert outcome.json["error"]["kind"] == "SpecError"
    assert outcome.json["error"]["message"] == outcome.error


def test_the_place_to_write_is_checked_before_the_model_is_read(tersor: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    for out in (tmp_path, tmp_path / "precious", tmp_path / "precious" / "out"):
        outcome = tersor("convert", "a_module_that_must_not_be:imported", "-o", out)
        assert outcome.code == 2
        assert str(out) in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_errors_name_options_of_the_command_line() -> None:
    assert as_options("pass example_inputs, a mapping") == "pass --example-inputs, a mapping"
    assert (
        as_options("max_deviation=0.1 and on_violation='revert'")
        == "--max-deviation 0.1 and --on-violation revert"
    )
    assert as_options("or use target='torch'; ops=\"ort\"") == "or use --target torch; --ops ort"
    assert as_options("pass calibration=, a list") == "pass --calibration, a list"
    assert (
        as_options("or pass dynamic={} to fix a dynamic size")
        == "or pass --dynamic none to fix a dynamic size"
    )
    assert as_options("Leave it out of dynamic, or") == "Leave it out of --dynamic, or"
    assert (
        as_options("batch 0 of calibration: keep=0.7, drops=1") == "batch 0 of calibration: keep=0.7, drops=1"
    )


def test_a_size_is_checked_against_the_model(tersor: Any, artifact: Path, model_folder: Path) -> None:
    for command in (["inspect", artifact], ["bench", artifact, "--against", model_folder]):
        outcome = tersor(*command, "--size", "tokns=3")
        assert (outcome.code, outcome.error) == (
            2,
            "the model has no dimension 'tokns'; did you mean 'tokens'?",
        )
        outcome = tersor(*command, "--size", "tokens=33")
        assert (outcome.code, outcome.error) == (2, "--size tokens=33: the model takes 2 to 32")
        outcome = tersor(*command, "--size", "tokens=3", "--size", "tokens=4")
        assert (outcome.code, outcome.error) == (2, "--size tokens is given twice")
    outcome = tersor(*command, "--size", "batch=999999999", "--size", "tokens=32")
    assert outcome.code == 2
    assert "the inputs alone take 512 GB" in outcome.error


def test_what_lies_in_an_artifacts_folder_is_named_before_the_model_is_read(
    tersor: Any, artifact: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(artifact, tmp_path / "out"))
    (out / "thesis.tex").write_text("text")
    outcome = tersor("convert", "a_module_that_must_not_be:imported", "-o", out)
    assert outcome.code == 2
    assert "thesis.tex" in outcome.error
    assert (out / "thesis.tex").read_text() == "text"


def test_a_refused_pass_is_exit_code_three(tersor: Any, model_folder: Path, tmp_path: Path) -> None:
    outcome = tersor(
        "convert", model_folder, "-o", tmp_path / "out", "-p", "token-drop:layers=7", "--target", "torch"
    )
    assert outcome.code == 3
    assert "the model has layers 0 to 1" in outcome.error
    assert not list(tmp_path.iterdir())


def test_a_deviation_past_the_budget_is_exit_code_three(
    tersor: Any, model_folder: Path, tmp_path: Path
) -> None:
    request = ("convert", model_folder, "-p", DROP, "--target", "torch", "--max-deviation", "1e-9")
    outcome = tersor(*request, "-o", tmp_path / "out")
    assert outcome.code == 3
    assert "past the budget of 1e-09" in outcome.error
    assert not list(tmp_path.iterdir())
    outcome = tersor(*request, "-o", tmp_path / "out", "--on-violation", "revert", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["report"]["steps"][-1]["verdict"] == "reverted"


def test_a_defect_is_exit_code_four_and_shows_its_place_only_when_asked(
    tersor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("tersor.passes.registry.find_passes", fail)
    outcome = tersor("passes")
    assert outcome.code == 4
    assert "internal defect: ZeroDivisionError: by nothing" in outcome.error
    outcome = tersor("passes", "--traceback")
    assert outcome.code == 4
    assert "Traceback (most recent call last)" in outcome.stderr
    assert "test_errors.py" in outcome.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (kinds.InputError, 2),
        (kinds.SpecError, 2),
        (kinds.CaptureError, 2),
        (kinds.ArtifactError, 2),
        (kinds.RefusedError, 3),
        (kinds.PromiseError, 3),
        (kinds.LoweringError, 3),
        (kinds.VerifierError, 4),
        (KeyError, 4),
    ],
)
def test_every_kind_of_error_has_its_exit_code(kind: type[Exception], code: int) -> None:
    assert code_of(kind("x")) == code


def test_an_interruption_is_exit_code_130(tersor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tersor.passes.registry.find_passes", interrupt)
    outcome = tersor("passes")
    assert outcome.code == 130
    assert "Traceback" not in outcome.stderr
