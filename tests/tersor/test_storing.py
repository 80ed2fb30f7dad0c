"""Weights in fewer bits through the front door: measured, stated, saved, refused with the figure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from text_folder import save_text_model
from torch import Tensor, nn

import tersor
from tersor import InputError, Program, PromiseError, optimize_model
from tersor.losses import Losses
from tersor.lowering import lower
from tersor.text import load_tokenizer, opening
from tersor.verification import verify_artifact

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def fast(folder: Path) -> Any:
    return optimize_model(folder, ["kv-cache", "speculate"], "onnx", weights="int8", threads=1)


def test_perplexity_on_prose_is_measured_and_stated(fast: Any) -> None:
    storage = fast.report.storage
    assert storage.measure == "perplexity"
    assert storage.positions > 1000
    assert [trial.kind for trial in storage.trials] == ["int8"]
    assert -0.01 < storage.kept.loss < storage.most_loss == 0.01
    assert 0 < storage.kept.error < 0.01
    assert storage.kept.bytes < 0.5 * storage.bytes
    assert "weights int8:" in str(fast.report)
    assert storage.smoothed
    assert f"inputs of {storage.smoothed} matrices smoothed" in str(fast.report)
    assert fast.manifest.options["weights"] == "int8"


def test_the_loss_is_that_of_perplexities_computed_by_hand(folder: Path, fast: Any) -> None:
    ids = torch.randint(2, 256, (2, 40))
    sample = fast.session.bind({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    program = fast.program
    losses = Losses(program, [sample], calibrated=True)
    executable = lower(program, "onnx", {"weights": "int4", "threads": 1})
    loss, _ = losses.of(executable)
    mean = [
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        for logits in (program.run(sample)[0], executable.run(sample)[0])
    ]
    assert loss.share == pytest.approx(float((mean[1] - mean[0]).exp()) - 1, abs=1e-6)
    assert losses.positions == 2 * 39


def test_calibration_that_opens_as_no_text_does_is_noted(tmp_path: Path) -> None:
    """Gemma's perplexity on text without what its tokenizer opens texts with is five times as large."""
    folder = save_text_model(tmp_path / "model", opening="A")
    begun = opening(load_tokenizer(folder))
    assert len(begun) == 1
    rows = torch.randint(100, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    for padding, opens, noted in ((0, False, True), (0, True, False), (3, True, False), (3, False, True)):
        ids, mask = rows.clone(), torch.ones_like(rows)
        mask[:, :padding] = 0
        if opens:
            ids[1, padding] = begun[0]
        report = optimize_model(
            folder, [], "onnx", weights="int8", threads=1, on_violation="revert", require_speedup=False,
            calibration=[{"input_ids": ids, "attention_mask": mask}],
        ).report  # fmt: skip
        told = [note for note in report.notes if "opens with A, as the tokenizer has every text do" in note]
        assert len(told) == noted, (padding, opens)


def test_an_artifact_stores_it_and_generates_what_it_did_before(
    fast: Any, folder: Path, tmp_path: Path
) -> None:
    fast.save(tmp_path / "out")
    again = tersor.load(tmp_path / "out")
    assert again.manifest.options["weights"] == "int8"
    assert again.report.storage == fast.report.storage
    assert again.generate(PROMPT, max_new_tokens=12) == fast.generate(PROMPT, max_new_tokens=12)
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.9 * (
        tmp_path / "out" / "program.safetensors"
    ).stat().st_size
    for against in (None, folder):
        checks = verify_artifact(tmp_path / "out", against)
        assert checks.ok, str(checks)
        assert "weights int8" in str(checks)


def test_an_altered_weight_is_noticed(fast: Any, tmp_path: Path) -> None:
    work = fast.program.edit()
    name = next(name for name in work.weights if "down" in name)
    work.weights[name] = work.weights[name] * 1.5
    samples = fast.samples
    loss, _ = Losses(fast.program, samples, calibrated=False).of(lower(work, "onnx", {"weights": "int8"}))
    assert abs(loss.share) > 0.01


class Narrow(nn.Module):
    """A matrix that 4 bits do badly: a few numbers are all that counts, among others that set the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64, bias=False), nn.Linear(64, 8, bias=False)
        with torch.no_grad():
            self.first.weight.normal_(std=0.01)
            self.first.weight[:, ::32] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(64)
        mask[::32] = 0.0
        return self.last(self.first(x * mask))


def test_what_costs_too_much_is_mixed_refused_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, example = Narrow().eval(), {"x": torch.randn(16, 64)}
    program = tersor.capture(model, example)
    mixed = optimize_model(program, target="onnx", weights="int4", threads=1)
    storage = mixed.report.storage
    assert storage is not None
    assert storage.measure == "cosine distance"
    assert storage.trials[0].kind == "int4"
    assert storage.trials[0].loss > 0.04 >= storage.kept.loss
    assert storage.kept.kind == "int4, 1 matrices int8"
    assert mixed.manifest.options["weight_kinds"] == {"first.weight": "int8"}

    from tersor.codegen.onnx.weights.int4 import Int4

    monkeypatch.setattr(Int4, "most_loss", 1e-9)
    with pytest.raises(PromiseError, match=r"weights='int4' costs .*% of cosine distance, .* may cost 0%"):
        optimize_model(program, target="onnx", weights="int4", threads=1)
    left = optimize_model(program, target="onnx", weights="int4", threads=1, on_violation="revert")
    assert left.report.storage is not None
    assert left.report.storage.kept.kind == left.manifest.options["weights"] == "fp32"


def test_auto_takes_the_smallest_that_costs_little(program: Program) -> None:
    fast = optimize_model(program, target="onnx", weights="auto", threads=1)
    storage = fast.report.storage
    assert storage is not None
    assert storage.kept.loss <= 0.01
    assert fast.manifest.options["weights"] != "auto"
    assert storage.kept.bytes < 0.6 * storage.bytes


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_16_bits_halve_the_file(kind: str, tmp_path: Path, folder: Path) -> None:
    fast = optimize_model(folder, target="onnx", weights=kind, ops="portable", threads=1)
    fast.save(tmp_path / "out")
    assert abs(fast.report.storage.kept.loss) < 0.01  # type: ignore[union-attr]
    held = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    short = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[kind]
    large = [tensor for tensor in held if math.prod(tensor.dims) > 1000 and "embed" not in tensor.name]
    assert all(tensor.data_type == short for tensor in large)
    assert sum(tensor.data_type == short for tensor in held) == 15
    inputs = fast.samples[0]
    torch.testing.assert_close(
        tersor.load(tmp_path / "out").run(inputs)[0], fast.run(inputs)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "int9"}, "weights='int9' is none of fp32, "),
        ({"weights": "int8", "ops": "portable"}, "ops='portable' rules them out"),
        ({"weights": "int8", "target": "torch"}, "no option 'weights'"),
    ],
)
def test_wrong_requests_are_named_before_the_model_is_read(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        optimize_model("a_module_that_must_not_be:imported", **options)


def test_a_report_reads_back(fast: Any) -> None:
    from tersor.saved_report import read_report

    assert read_report(json.loads(json.dumps(fast.report.to_json()))).storage == fast.report.storage
