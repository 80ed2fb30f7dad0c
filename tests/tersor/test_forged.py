"""A forger who writes hashes and seal anew gains nothing: no file outside the folder, no raw error, no other model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tersor
from tersor import ArtifactError, Program, optimize_model
from tersor.certificate import _seal, file_hash
from tersor.ir import archive
from tersor.verification import raise_unless_ok, verify_artifact

Batches = list[dict[str, torch.Tensor]]
Change = Callable[[Any], Any]


@pytest.fixture
def out(saved: Path, tmp_path: Path) -> Path:
    """A copy of the artifact, to be forged."""
    return Path(shutil.copytree(saved, tmp_path / "out"))


def _certify(out: Path, change: Change = lambda data: None) -> None:
    """Write the certificate as a careful forger would: hashes and seal fit."""
    data = json.loads((out / "certificate.json").read_text())
    data.pop("seal")
    for name, recorded in data["files"].items():
        recorded |= {"bytes": (out / name).stat().st_size, "sha256": file_hash(out / name)}
    change(data)
    (out / "certificate.json").write_text(json.dumps(data | {"seal": _seal(data)}))


def _edit(path: Path, change: Change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _restate(out: Path, change: Change) -> None:
    """Change the report's steps, and the totals above them as they follow from the steps."""

    def restated(data: dict[str, Any]) -> None:
        change(data)
        data.update(before=data["steps"][0]["before"], after=data["steps"][-1]["after"])

    _edit(out / "report.json", restated)


def _failed(out: Path, against: Program | None = None) -> list[str]:
    return [check.name for check in verify_artifact(out, against).checks if not check.ok]


def _moved(program: Program) -> Program:
    """The same graph with other weights."""
    edited = program.edit()
    edited.weights = {
        name: weight + 0.02 * torch.randn(weight.shape) if weight.is_floating_point() else weight
        for name, weight in program.weights.items()
    }
    return edited


def test_a_certificate_that_claims_too_little_deviation_is_refuted(out: Path, program: Program) -> None:
    def claim_less(data: dict[str, Any]) -> None:
        for output in data["measured"]["outputs"]:
            output["cosine_distance"] *= 0.5
            output["relative_l2"] *= 0.5
        data["measured"]["overall"] *= 0.5

    _certify(out, claim_less)
    assert _failed(out, program) == ["artifact against model"]


def _claim_flops(step: dict[str, Any]) -> None:
    step["after"]["flops"] //= 100


def _claim_parameters(step: dict[str, Any]) -> None:
    step["before"]["parameters"] *= 2


def _claim_bytes(step: dict[str, Any]) -> None:
    step["after"]["bytes"] -= 1


def _claim_keep(step: dict[str, Any]) -> None:
    step["sites"][0]["facts"]["keep"] = 10


def _claim_no_sites(step: dict[str, Any]) -> None:
    step["sites"] = []


def _claim_exact(step: dict[str, Any]) -> None:
    step["promise"] = "exact"


@pytest.mark.parametrize(
    ("step", "claim"),
    [
        # Clean-up is exact, and keeps every token.
        *((0, claim) for claim in (_claim_flops, _claim_parameters, _claim_bytes, _claim_no_sites)),
        *((-1, claim) for claim in (_claim_flops, _claim_parameters, _claim_bytes, _claim_no_sites)),
        (-1, _claim_keep),
        (-1, _claim_exact),
    ],
)
def test_counts_that_are_others_in_report_and_certificate_are_refuted(
    out: Path, program: Program, claim: Change, step: int
) -> None:
    recorded = json.loads((out / "report.json").read_text())["steps"][step]
    before = json.dumps(recorded)
    claim(recorded)
    assert json.dumps(recorded) != before, "nothing was forged"
    _restate(out, lambda data: data["steps"].__setitem__(step, recorded))
    _certify(out, lambda data: data["passes"].__setitem__(step, recorded))
    if step == -1 and recorded["after"] != json.loads(before)["after"]:
        # What the artifact's own Program costs needs no model.
        assert _failed(out) == _failed(out, program) == ["counts"]
        return
    assert _failed(out) == []
    failed = _failed(out, program)
    assert len(failed) == 1
    assert failed[0].startswith(recorded["spec"])


@pytest.mark.parametrize("total", ["before", "after"])
@pytest.mark.parametrize("count", ["flops", "bytes", "parameters"])
def test_totals_that_do_not_follow_from_the_steps_are_refuted(out: Path, total: str, count: str) -> None:
    _edit(out / "report.json", lambda data: data[total].update({count: data[total][count] - 1}))
    _certify(out)
    for use in (lambda: verify_artifact(out), lambda: tersor.load(out)):
        with pytest.raises(
            ArtifactError, match=f"report.json is damaged .*'{total}' is not what its steps say"
        ):
            use()


def test_an_overall_deviation_that_does_not_follow_from_the_outputs_is_refuted(out: Path) -> None:
    report = (out / "report.json").read_text()
    for deviation in (lambda data: data["deviation"], lambda data: data["steps"][-1]["deviation"]):
        _edit(out / "report.json", lambda data, of=deviation: of(data).update(overall=1e-9))
        _certify(out)
        with pytest.raises(ArtifactError, match=r"report.json is damaged .*'overall' is 1e-09"):
            verify_artifact(out)
        (out / "report.json").write_text(report)
    _certify(out, lambda data: data["measured"].update(overall=1e-9))
    with pytest.raises(ArtifactError, match=r"certificate.json is missing or damaged .*'overall' is 1e-09"):
        verify_artifact(out)


def test_a_step_that_was_not_kept_saves_nothing(out: Path, program: Program) -> None:
    steps = json.loads((out / "report.json").read_text())["steps"]
    now = steps[-1]["after"]
    reverted = steps[-1] | {"spec": "token-drop:method=random", "verdict": "reverted", "reason": "budget"}
    for before, after, failed in (
        (now, dict(now, flops=1), ["counts"]),
        (dict(now, flops=1), now, [reverted["spec"]]),
        (now, now, []),
    ):
        added = [*steps, reverted | {"before": before, "after": after}]
        _restate(out, lambda data, added=added: data.update(steps=added))
        _certify(out, lambda data, added=added: data.update(passes=added))
        assert _failed(out, program) == failed


def test_a_report_of_another_deviation_or_of_other_sizes_is_refuted(out: Path, program: Program) -> None:
    def claim_less(data: dict[str, Any]) -> None:
        for output in data["deviation"]["outputs"]:
            output["relative_l2"] *= 0.5

    kept = (out / "report.json").read_text()
    for change, failed in ((claim_less, "passes together"), (_with(sizes={"batch": 1}), "sizes")):
        (out / "report.json").write_text(kept)
        _edit(out / "report.json", change)
        _certify(out)
        assert _failed(out, program) == [failed]


def test_a_report_without_steps_is_refuted(out: Path) -> None:
    _edit(out / "report.json", lambda data: data.update(steps=[], before=None, after=None))
    _edit(out / "manifest.json", lambda data: data.update(passes=[]))
    _certify(out, lambda data: data.update(passes=[]))
    assert _failed(out) == ["records"]


def test_latency_is_said_not_to_be_verified(out: Path, program: Program) -> None:
    def claim(steps: list[dict[str, Any]]) -> None:
        steps[-1]["latency_ratio"] = 0.01

    _edit(out / "report.json", lambda data: claim(data["steps"]))
    _certify(out, lambda data: claim(data["passes"]))
    found = verify_artifact(out, program)
    assert found.ok
    assert "its latency, 0.010x, is not verified" in str(found)


def test_weights_replaced_together_with_their_hashes_are_refuted(out: Path, program: Program) -> None:
    """Files and certificate agree with each other, and not with the model."""
    forged = _moved(archive.load(out))
    archive.save(forged, out)

    def recertify(data: dict[str, Any]) -> None:
        data["program"]["weights_sha256"] = archive.weights_hash(forged.weights)

    _certify(out, recertify)
    assert _failed(out, program) == ["artifact against model"]


@pytest.mark.parametrize(
    "name", ["../secret", "{parent}/secret", "a/../../secret", "", ".", "./x", "certificate.json"]
)
def test_a_certificate_that_names_a_file_outside_is_refused_before_anything_is_read(
    out: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("s")
    record = {"bytes": 1, "sha256": file_hash(tmp_path / "secret")}
    _certify(out, lambda data: data["files"].update({name.format(parent=tmp_path): record}))
    with pytest.raises(ArtifactError, match="no file inside"):
        tersor.load(out)
    with pytest.raises(ArtifactError, match="no file inside"):
        verify_artifact(out)
    with pytest.raises(ArtifactError, match="no file inside"):
        tersor.load(out, check=False).save(tmp_path / "copies" / "copy")
    assert not (tmp_path / "copies").exists()


def test_a_link_that_leaves_the_folder_is_refused(out: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (out / "link").symlink_to(tmp_path / "secret")
    (out / "folder").symlink_to(tmp_path)
    for name in ("link", "folder/secret"):
        record = {"bytes": 1, "sha256": file_hash(tmp_path / "secret")}
        _certify(out, lambda data, name=name, record=record: data["files"].update({name: record}))
        with pytest.raises(ArtifactError, match="no file inside"):
            tersor.load(out)
        _certify(out, lambda data, name=name: data["files"].pop(name))
    (out / "circle").symlink_to(out / "circle")
    _certify(out, lambda data: data["files"].update(circle=record))
    with pytest.raises(ArtifactError):
        tersor.load(out)


def _without(key: str) -> Change:
    return lambda data: data.pop(key)


def _with(**values: Any) -> Change:
    return lambda data: data.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            (_without(key), f"it has no '{key}'")
            for key in ("model", "program", "inputs", "passes", "measured", "files")
        ),
        (_with(files=5), "files is a whole number, not an object"),
        (_with(files={"report.json": "abc"}), "files.report.json is a text, not an object"),
        (
            _with(files={"report.json": {"bytes": True, "sha256": ""}}),
            "bytes is true or false, not a whole number",
        ),
        (
            _with(inputs={"kind": "calibration", "samples": 2, "sha256": None}),
            "inputs.sha256 is null, not a text",
        ),
        (_with(program=[]), "program is a list, not an object"),
        (_with(measured={"overall": 0}), "no 'outputs'"),
        (
            _with(measured={"outputs": [{"name": 3}], "samples": 2, "not_compared": []}),
            "no 'cosine_distance'",
        ),
        (_with(measured={"outputs": 3, "samples": 2, "not_compared": []}), "damaged"),
        (_with(passes={"a": 1}), "passes is an object, not a list"),
        (_with(format="1"), "format is a text, not a whole number"),
    ],
)
def test_a_sealed_certificate_of_another_shape_is_one_clear_error(
    out: Path, program: Program, change: Change, message: str
) -> None:
    _certify(out, change)
    for use in (
        lambda: tersor.load(out),
        lambda: verify_artifact(out),
        lambda: verify_artifact(out, program),
    ):
        with pytest.raises(ArtifactError, match=r"certificate\.json is missing or damaged") as caught:
            use()
        assert message in str(caught.value)


def _two_outputs(program: Program) -> Program:
    """The encoder with its output under two names, so that exchanging the names changes nothing but them."""
    g = program.edit()
    (leaf,) = g.graph.output_node().args[0]  # type: ignore[misc]
    with g.graph.inserting_before(g.graph.output_node()):
        twice = g.graph.call_function(torch.ops.aten.mul.Tensor, (leaf, 2.0))
        twice.meta = dict(leaf.meta)
    g.graph.output_node().args = ((leaf, twice),)
    (spec,) = program.outputs
    g.outputs = tuple(type(spec)(name, spec.shape, spec.dtype) for name in ("cat", "dog"))
    kind = type(program.structure)
    g.structure = kind("dict", (kind("tensor"), kind("tensor")), ("cat", "dog"))
    return g


def _swap(data: Any) -> None:
    data["structure"]["keys"] = ["dog", "cat"]


def test_exchanged_output_names_are_refuted(program: Program, batches: Batches, tmp_path: Path) -> None:
    model, out = _two_outputs(program), tmp_path / "out"
    optimize_model(model, target="onnx", calibration=batches).save(out)
    assert _failed(out, model) == []
    _edit(out / "manifest.json", _swap)
    _certify(out)
    assert _failed(out) == _failed(out, model) == ["interface"]
    _edit(out / "program.json", _swap)
    _certify(out)
    assert _failed(out, model) == ["model's interface"]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("dimensions", lambda data: data["dimensions"].update(tokens=[1, 7])),
        ("inputs", lambda data: data["inputs"].reverse()),
        ("outputs", lambda data: data["outputs"][0].update(name="logits")),
        ("structure", lambda data: data["structure"].update(type="transformers.x:Y")),
        ("passes", lambda data: data.update(passes=[])),
    ],
)
def test_a_manifest_that_says_otherwise_than_the_program_is_refuted(
    out: Path, key: str, change: Change
) -> None:
    _edit(out / "manifest.json", change)
    _certify(out)
    with pytest.raises(ArtifactError, match=f"interface: .*what its {key} should be"):
        raise_unless_ok(verify_artifact(out))


def test_other_ranges_and_inputs_than_the_models_are_refuted(out: Path, program: Program) -> None:
    for file, key in (("manifest.json", "dimensions"), ("program.json", "ranges")):
        _edit(out / file, lambda data, key=key: data[key].update(batch=[1, 99]))
    _certify(out)
    assert _failed(out) == []
    with pytest.raises(ArtifactError, match="model's interface: its dimensions"):
        raise_unless_ok(verify_artifact(out, program))


def test_a_certificate_that_promises_otherwise_than_the_report_is_refuted(out: Path) -> None:
    _certify(out, lambda data: data["passes"][-1].update(promise="exact"))
    assert _failed(out) == ["records"]
    _certify(out, lambda data: data["inputs"].update(kind="example"))
    assert _failed(out) == ["records"]


@pytest.mark.parametrize(
    "change",
    [
        _with(structure={"kind": "tensor", "children": []}, outputs=[]),
        _with(structure={"kind": "tuple", "children": [{"kind": "tensor"}, {"kind": "tensor"}]}),
        _with(structure={"kind": "dict", "children": [{"kind": "tensor"}]}),
        _with(structure={"kind": "set", "children": [{"kind": "tensor"}]}),
        _with(structure={"kind": "dict", "keys": [3], "children": [{"kind": "tensor"}]}),
        _with(structure={"kind": "tuple", "children": [3]}),
        _with(dimensions={"batch": [1, "a"], "tokens": [1, 9]}),
        _with(dimensions={"batch": [None, 3], "tokens": [1, 9]}),
        _with(dimensions={}),
        _with(inputs="abc"),
        _with(options=[]),
        _with(options={"compile": "x"}),
        _with(options={"evil": 1}),
        _with(calibrated="no"),
        _with(imports=[1]),
    ],
)
def test_a_manifest_that_describes_no_model_is_one_clear_error(out: Path, change: Change) -> None:
    _edit(out / "manifest.json", change)
    _certify(out)
    with pytest.raises(ArtifactError, match="manifest"):
        tersor.load(out).verify()


def test_a_manifest_nested_too_deep_is_one_clear_error(out: Path) -> None:
    text = (out / "manifest.json").read_text()
    (out / "manifest.json").write_text(text.replace('"options": {', '"options": {"a": ' + "[" * 100_000, 1))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        tersor.load(out, check=False)
