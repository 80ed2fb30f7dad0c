"""Every command does its job, as text and as JSON, and says so with its exit code."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from tersor import load
from tersor.codegen.onnx.weights import kinds
from tersor.codegen.target import target_names
from tersor.ir.program import Program
from tersor.passes.contract import Method, Pass, Promise, Refusal, Site
from tersor.passes.registry import find_methods, find_passes, registered, unregistered
from tersor.passes.tokens.method import TokenMethod

COMMANDS = ("convert", "passes", "inspect", "verify", "bench", "diff", "doctor")


def test_convert_writes_an_artifact_that_runs(
    tersor: Any, artifact: Path, model_folder: Path, inputs_file: Path
) -> None:
    from safetensors.torch import load_file
    from transformers import BertModel

    inputs = load_file(inputs_file)
    fast, model = load(artifact), BertModel.from_pretrained(model_folder).eval()
    with torch.no_grad():
        expected, actual = model(**inputs), fast(**inputs)
    assert type(actual) is type(expected)
    similarity = torch.cosine_similarity(actual[0], expected[0], dim=-1)
    assert 0.5 < float(similarity.mean()) < 1


def test_convert_for_onnx_reports_every_pass_as_json(tersor: Any, model_folder: Path, tmp_path: Path) -> None:
    outcome = tersor(
        "convert", model_folder, "-o", tmp_path / "out", "--threads", "1", "--ops", "portable", "--json"
    )
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    assert [step["spec"] for step in outcome.json["report"]["steps"]] == ["cleanup"]
    assert outcome.json["calibrated"] is False
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_convert_takes_a_factory_on_the_path(
    tersor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_model_of_mine.py").write_text(
        "import torch\ndef make():\n    return torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    outcome = tersor("convert", "a_model_of_mine:make", "--target", "torch", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert load(tmp_path / "out")(torch.randn(3, 5, 8)).shape == (3, 5, 8)


def test_passes_lists_every_pass_and_method_with_its_options(tersor: Any) -> None:
    listed = {entry["name"]: entry for entry in tersor("passes", "--json").json["passes"]}
    assert list(listed) == list(find_passes())
    methods = listed["token-drop"]["methods"]["method"]
    assert [method["name"] for method in methods] == list(find_methods(TokenMethod))
    text = tersor("passes").stdout
    for entry in listed.values():
        for part in [entry, *(method for methods in entry["methods"].values() for method in methods)]:
            assert part["about"], part["name"]
            assert part["name"] in text
            for option in part["options"]:
                assert option["help"], f"{part['name']}: {option['name']}"
                assert option["name"] in text
    assert [entry["name"] for entry in tersor("passes", "token-drop", "--json").json["passes"]] == [
        "token-drop"
    ]
    assert {entry["name"] for entry in tersor("passes", "--json").json["weights"]} == set(kinds())
    assert all(f"--weights {name} " in text for name in kinds())


def test_inspect_shows_layers_cost_and_legality(tersor: Any, model_folder: Path) -> None:
    outcome = tersor("inspect", model_folder, "--size", "tokens=20", "--size", "batch=1", "--json")
    assert outcome.code == 0, outcome.stderr
    data = outcome.json
    assert [layer["index"] for layer in data["layers"]] == [0, 1]
    assert data["cost"]["at"]["tokens"] == 20
    assert data["cost"]["at"]["flops"] > 0
    assert "tokens" in data["cost"]["flops"]
    legal = {entry["spec"]: entry["legal"] for entry in data["passes"]}
    assert legal["token-drop:method=norm"] is True
    assert {spec.partition(":")[0] for spec in legal} == set(find_passes())
    refused = [entry for entry in data["passes"] if not entry["legal"]]
    assert all(entry["reason"] for entry in refused)


@unregistered
@dataclass(frozen=True)
class Fuse(Pass):
    """A family of its own, whose slot the methods below fill."""

    name: ClassVar[str] = "test-fuse"
    family: ClassVar[str] = "test-fusion"
    promise: ClassVar[Promise] = Promise.EXACT

    how: Fusion = field(default_factory=lambda: Wholly(), metadata={"help": "what is fused"})

    def legality(self, program: Program) -> list[Site] | Refusal:
        return Refusal("nothing here can be fused")

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        return program


class Fusion(Method):
    """Base of the methods of a slot that only this file has."""


@unregistered
@dataclass(frozen=True)
class Wholly(Fusion):
    """All of it."""

    name: ClassVar[str] = "test-wholly"


def test_a_family_of_ones_own_is_listed_and_inspected_like_any(tersor: Any, model_folder: Path) -> None:
    with registered(Fuse, Wholly):
        test_passes_lists_every_pass_and_method_with_its_options(tersor)
        test_inspect_shows_layers_cost_and_legality(tersor, model_folder)
        outcome = tersor("inspect", model_folder, "--json")
    (entry,) = [entry for entry in outcome.json["passes"] if entry["family"] == Fuse.family]
    assert entry["spec"] == "test-fuse:how=test-wholly"
    assert entry["reason"] == "nothing here can be fused"


def test_inspect_says_which_sizes_were_fixed_and_why(tersor: Any, tmp_path: Path) -> None:
    class Groups(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, tokens, width = x.shape
            return x.reshape(rows, tokens // 4, 4, width).sum(2)

    free = {0: torch.export.Dim.AUTO, 1: 4 * torch.export.Dim("groups")}
    exported = torch.export.export(Groups(), (torch.randn(2, 12, 16),), dynamic_shapes=(free,))
    torch.export.save(exported, tmp_path / "groups.pt2")
    (note,) = tersor("inspect", tmp_path / "groups.pt2", "--json").json["notes"]
    assert note.startswith("dim 1 of 'x' is fixed at 12: the model branches on ")
    assert "note: dim 1 of 'x' is fixed at 12" in tersor("inspect", tmp_path / "groups.pt2").stdout


def test_inspect_says_why_a_family_is_illegal(
    tersor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "without_attention.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    default_cfg = {'input_size': (3, 4, 8)}\n"
        "def make():\n    return Net(8, 8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    outcome = tersor("inspect", "without_attention:make")
    if outcome.code == 0:
        line = next(line for line in outcome.stdout.splitlines() if "method=norm" in line)
        assert "refused" in line
        assert "no attention was found" in line
    else:
        assert "does not say what inputs it takes" in outcome.error


def test_verify_passes_an_intact_artifact(tersor: Any, artifact: Path, model_folder: Path) -> None:
    outcome = tersor("verify", artifact, "--against", model_folder, "--json")
    assert outcome.code == 0, outcome.stdout
    assert outcome.json["ok"] is True
    assert {check["name"] for check in outcome.json["checks"]} >= {"files", "model", "artifact against model"}


def test_verify_fails_loudly_on_damage_and_on_another_model(
    tersor: Any, artifact: Path, model_folder: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    weights = bytearray((damaged / "program.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "program.safetensors").write_bytes(weights)
    outcome = tersor("verify", damaged)
    assert outcome.code == 1
    assert "program.safetensors" in outcome.error
    (damaged / "certificate.json").write_text("{}")
    outcome = tersor("verify", damaged, "--json")
    assert outcome.code == 1
    assert outcome.json["error"]["exit_code"] == 1


def test_verify_against_a_model_of_other_inputs_is_exit_code_one(tersor: Any, artifact: Path) -> None:
    outcome = tersor("verify", artifact, "--against", "torch.nn:Identity")
    assert outcome.code == 1, outcome
    assert "verification failed: model: it does not take what the artifact takes" in outcome.error
    assert tersor("verify", artifact, "--against", "torch.nn:Identidy").code == 2


def test_bench_gives_a_ratio_with_its_spread_and_the_machine(
    tersor: Any, artifact: Path, model_folder: Path
) -> None:
    request = ("bench", artifact, "--against", model_folder, "--pairs", "3", "--size", "tokens=16", "--json")
    outcome = tersor(*request, "--at-most", "1000")
    assert outcome.code == 0, outcome.stderr
    timing = outcome.json["timing"]
    assert timing["ratio_low"] <= timing["ratio"] <= timing["ratio_high"]
    assert outcome.json["inputs"]["input_ids"][1] == 16
    assert 0 < outcome.json["flops"]["ratio"] < 1
    assert outcome.json["machine"]["read_bandwidth_gb_s"] > 0
    assert outcome.json["notes"] == []
    outcome = tersor(*request, "--at-most", "0")
    assert outcome.code == 1
    assert "above 0" in outcome.error


def test_diff_shows_what_a_pass_changed(tersor: Any, artifact: Path, model_folder: Path) -> None:
    assert tersor("diff", artifact, artifact, "--exit-code").code == 0
    outcome = tersor("diff", model_folder, artifact, "--json", "--exit-code")
    assert outcome.code == 1
    assert outcome.json["equal"] is False
    assert any(line.startswith("+") and "select_tokens" in line for line in outcome.json["diff"].splitlines())


def test_doctor_tries_every_target(tersor: Any) -> None:
    outcome = tersor("doctor", "--json")
    assert outcome.code == 0, outcome.stderr
    assert set(outcome.json["targets"]) == set(target_names())
    assert outcome.json["targets"]["torch"]["works"] is True
    assert outcome.json["targets"]["onnx"]["works"] is True
    assert "CPUExecutionProvider" in outcome.json["providers"]
    assert outcome.json["machine"]["versions"]["torch"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(tersor: Any, command: str) -> None:
    outcome = tersor(command, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.stdout
    assert "--traceback" in outcome.stdout


def run_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tersor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_module_runs_as_a_program_without_loading_torch() -> None:
    code = "import sys, tersor.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert run_process("--help").returncode == 0
    result = run_process("convrt")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: No such command 'convrt'. Did you mean 'convert'? (see tersor --help)\n"


@pytest.mark.slow
def test_a_process_prints_json_alone_on_stdout_and_nothing_on_stderr(
    model_folder: Path, tmp_path: Path
) -> None:
    result = run_process("convert", str(model_folder), "-o", str(tmp_path / "out"), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["target"] == "onnx"
    assert result.stderr == ""


@pytest.mark.slow
def test_a_terminated_conversion_leaves_nothing(model_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-m", "tersor", "convert", str(model_folder), "-o", str(place / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(place.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    # The signal may have come after the last rename; then the artifact is whole.
    left = [path.name for path in place.iterdir()]
    assert (code, left) in [(128 + signal.SIGTERM, []), (128 + signal.SIGTERM, ["out"]), (0, ["out"])]


def test_bench_against_another_model_is_an_error(
    tersor: Any, artifact: Path, model_folder: Path, tmp_path: Path
) -> None:
    from transformers import BertModel

    other = BertModel.from_pretrained(model_folder)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight.add_(1.0)
    other.save_pretrained(tmp_path / "other")
    outcome = tersor("bench", artifact, "--against", tmp_path / "other", "--pairs", "1")
    assert outcome.code == 2
    assert "is not the model that" in outcome.error
