"""Artifacts appear whole or not at all, run as what was saved, and show every damage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tersor
from tersor import ArtifactError, InputError, Program, optimize_model
from tersor.verification import raise_unless_ok, verify_artifact

Batches = list[dict[str, torch.Tensor]]


@pytest.fixture
def out(saved: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "out"))


def test_an_artifact_that_is_written_anew_is_not_taken_for_what_was_loaded(
    program: Program, out: Path
) -> None:
    loaded = tersor.load(out)
    optimize_model(program, ["constant-folding"], "torch").save(out)
    with pytest.raises(ArtifactError, match="was written anew after it was loaded here"):
        _ = loaded.program
    with pytest.raises(ArtifactError, match="was written anew after it was loaded here"):
        loaded.save(out.parent / "another")
    assert not (out.parent / "another").exists()
    assert tersor.load(out).program


def test_what_was_saved_is_what_is_loaded(program: Program, batches: Batches, tmp_path: Path) -> None:
    for target in ("torch", "onnx"):
        fast = optimize_model(program, target=target, calibration=batches)
        fast.save(tmp_path / target)
        loaded = tersor.load(tmp_path / target)
        assert loaded.target == target
        for batch in batches:
            result = loaded(**batch)
            assert type(result) is type(program(**batch))
            torch.testing.assert_close(result[0], fast(**batch)[0], atol=1e-6, rtol=1e-5)
        assert loaded.report.to_json() == fast.report.to_json()
        assert str(loaded.program) == str(fast.program)


def test_what_capture_settled_is_told_after_loading_too(
    program: Program, batches: Batches, tmp_path: Path
) -> None:
    noted = replace(program, notes={**program.notes, "capture": ["dim 1 of 'x' is fixed at 1"]})
    fast = optimize_model(noted, target="torch", calibration=batches)
    assert fast.report.notes[0] == "dim 1 of 'x' is fixed at 1"
    fast.save(tmp_path / "out")
    assert tersor.load(tmp_path / "out").report.notes == fast.report.notes


def test_an_artifact_holds_the_documented_files_and_leaves_nothing_beside(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert names >= {
        "manifest.json", "certificate.json", "report.json", "calibration.safetensors",
        "program.json", "program.safetensors",
    }  # fmt: skip
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert not [path for path in saved.iterdir() if path.suffix in (".pkl", ".pt", ".bin")]


def test_the_certificate_names_promises_measurements_and_hashes(saved: Path) -> None:
    certificate = json.loads((saved / "certificate.json").read_text())
    step = certificate["passes"][-1]
    assert step["promise"] == "approximate"
    assert 0 < step["deviation"]["overall"] < 1
    assert certificate["inputs"]["samples"] == 2
    assert set(certificate["files"]) == {p.name for p in saved.iterdir()} - {"certificate.json"}
    assert certificate["measured"]["overall"] == pytest.approx(step["deviation"]["overall"], rel=1e-3)


def test_a_loaded_model_can_be_saved_elsewhere_unchanged(saved: Path, tmp_path: Path) -> None:
    tersor.load(saved).save(tmp_path / "copy")
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()
    }


def test_a_failure_while_saving_leaves_the_old_artifact_and_no_other_file(
    program: Program, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("tersor.artifact.write_certificate", fail)
    for place in (out, out.parent / "fresh"):
        with pytest.raises(InputError, match=r"cannot write .*disk full"):
            optimize_model(program, target="torch").save(place)
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_an_artifact_replaces_an_artifact_and_nothing_else(program: Program, out: Path) -> None:
    fast = optimize_model(program, target="torch")
    fast.save(out)
    assert tersor.load(out).report.to_json() == fast.report.to_json()
    other = out.parent / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(InputError, match="did not write"):
        fast.save(other)
    with pytest.raises(InputError, match="is a file"):
        fast.save(other / "cat.jpg")
    with pytest.raises(InputError, match=r"cat\.jpg is a file"):
        fast.save(other / "cat.jpg" / "out")
    assert (other / "cat.jpg").read_bytes() == b"cat"
    assert sorted(p.name for p in out.parent.iterdir()) == ["out", "photos"]


def test_an_intact_artifact_verifies_against_its_model(saved: Path, encoder: torch.nn.Module) -> None:
    found = verify_artifact(saved, encoder)
    assert found.ok, str(found)
    assert [check.name for check in found.checks] == [
        "files", "inputs", "weights", "interface", "records", "counts", "artifact against its Program", "model",
        "text", "cleanup", "token-drop:method=norm,keep=0.6,layers=0 (approximate)", "passes together",
        "model's interface", "artifact against model",
    ]  # fmt: skip


def test_an_unsaved_model_verifies_against_the_program_it_came_from(program: Program) -> None:
    assert optimize_model(program, target="torch").verify().ok


def _moved(program: Program, size: float) -> Program:
    """The same graph with other weights."""
    edited = program.edit()
    edited.weights = {
        name: weight + size * torch.randn(weight.shape) if weight.is_floating_point() else weight
        for name, weight in program.weights.items()
    }
    return edited


def test_another_models_weights_are_noticed(saved: Path, program: Program) -> None:
    found = verify_artifact(saved, _moved(program, 1e-6))
    assert [check.name for check in found.checks if not check.ok] == ["model"]
    with pytest.raises(ArtifactError, match="its weights are others"):
        raise_unless_ok(found)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink])
def test_damage_to_any_file_is_found_by_load_and_by_verify(out: Path, damage: Any) -> None:
    for path in sorted(out.iterdir()):
        content = path.read_bytes()
        damage(path)
        with pytest.raises((ArtifactError, InputError), match=path.name.replace(".", r"\.")):
            tersor.load(out)
        with pytest.raises((ArtifactError, InputError), match=path.name.replace(".", r"\.")):
            raise_unless_ok(verify_artifact(out))
        path.write_bytes(content)
    tersor.load(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "other"}, "format"),
        ({"format": 99}, "99"),
        ({"target": "tpu"}, "names target 'tpu'"),
        ({"structure": None}, "is damaged"),
        ({"dimensions": {"batch": 3}}, "is damaged"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(out: Path, change: dict[str, Any], message: str) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(ArtifactError, match=message):
        tersor.load(out, check=False)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"kind": "tersor-artifact"}', "\x00\x01"])
def test_garbage_in_place_of_any_json_file_is_one_clear_error(out: Path, content: str) -> None:
    for path in sorted(out.glob("*.json")):
        original = path.read_bytes()
        path.write_text(content)
        with pytest.raises(ArtifactError, match=path.name):
            tersor.load(out)
        path.write_bytes(original)


def test_a_folder_that_is_no_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no manifest"):
        tersor.load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        tersor.load(tmp_path / "nowhere")


def test_an_option_that_the_target_does_not_have_is_not_ignored(saved: Path) -> None:
    with pytest.raises(InputError, match="no option 'threads'"):
        tersor.load(saved, threads=2)
