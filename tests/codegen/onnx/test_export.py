"""What is written is valid, dynamic, named, whole, and computes what the Program computes."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx_difference import difference
from torch import Tensor, nn

import tersor
from tersor.codegen.onnx import OnnxExecutable, assert_dynamic, build, export
from tersor.codegen.onnx.checks import check_model
from tersor.codegen.onnx.emitter import CHOSEN
from tersor.codegen.onnx.limits import LIMITS
from tersor.codegen.onnx.session import run, session_from_file, session_options
from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.errors import ArtifactError, InputError, LoweringError
from tersor.ir.program import Program


@pytest.fixture(scope="module")
def bert() -> Program:
    """A captured BERT; Programs are never changed, so that one serves every test."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    inputs = {
        "input_ids": torch.randint(0, 100, (2, 7)),
        "attention_mask": torch.ones(2, 7, dtype=torch.int64),
    }
    return capture(BertModel(config).eval(), inputs)


def padded(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[0, :2] = 0
    mask[-1, tokens - 1 :] = 0
    return {"input_ids": torch.randint(0, 100, (batch, tokens)), "attention_mask": mask}


@pytest.mark.parametrize("ops", ["portable", "ort"])
@pytest.mark.parametrize("limit", [1 << 30, 1 << 10], ids=["one file", "external data"])
def test_the_written_file_computes_what_the_program_computes(
    bert: Program, tmp_path: Path, ops: Any, limit: int
) -> None:
    files = export(bert, tmp_path / "model.onnx", ops=ops, limit=limit)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)
    session = session_from_file(tmp_path / "model.onnx", session_options(1), ["CPUExecutionProvider"])
    for batch, tokens in ((1, 5), (3, 12)):
        inputs = padded(batch, tokens)
        for want, have in zip(bert.run(inputs), run(session, inputs), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_the_file_names_inputs_outputs_dims_and_carries_metadata(bert: Program, tmp_path: Path) -> None:
    export(bert, tmp_path / "model.onnx", metadata={"tersor.passes": "token-drop:keep=0.7"})
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["input_ids", "attention_mask"]
    assert [o.name for o in model.graph.output] == [s.name for s in bert.outputs]
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", "tokens"]
    told = {p.key: p.value for p in model.metadata_props}
    assert told.pop(LIMITS)
    assert json.loads(told.pop(CHOSEN)) == ["2 attention by MatMul and Softmax"]
    assert told == {"tersor.passes": "token-drop:keep=0.7"}
    assert "embeddings.word_embeddings.weight" in {i.name for i in model.graph.initializer}


def test_a_portable_model_uses_the_standard_operators_only(bert: Program) -> None:
    assert {node.domain for node in build(bert, "portable").graph} == {""}
    own = build(bert, "ort")
    assert {node.domain for node in own.graph} == {"", "com.microsoft"}
    with pytest.raises(LoweringError, match=r"com\.microsoft::MultiHeadAttention"):
        check_model(own, portable=True)


def test_a_fixed_dim_is_found(bert: Program) -> None:
    model = build(bert)
    model.graph.inputs[0].shape = type(model.graph.inputs[0].shape)([2, "tokens"])  # type: ignore[misc,call-arg]
    with pytest.raises(LoweringError, match="dim 0 of 'input_ids' is batch in the program and 2"):
        assert_dynamic(model, bert)


def test_a_failed_write_leaves_nothing(
    bert: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bytes:
        raise OSError("no space left on device")

    monkeypatch.setattr("tersor.codegen.onnx.file.varint", fail)
    with pytest.raises(OSError, match="no space"):
        export(bert, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_path_without_a_folder_is_refused(bert: Program, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its folder does not exist"):
        export(bert, tmp_path / "nowhere" / "model.onnx")


def test_weights_are_the_programs_own_until_they_are_written(bert: Program) -> None:
    model = build(bert)
    for value in model.graph.initializers.values():
        name = str(value.name).removesuffix(".T")
        if name in bert.weights:
            raw = value.const_value.raw  # type: ignore[union-attr]
            assert raw.data_ptr() == bert.weights[name].data_ptr()


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_an_executable_survives_saving(bert: Program, tmp_path: Path, target: str) -> None:
    executable = find_target(target).lower(bert)
    executable.save(tmp_path)
    loaded = find_target(target).executable.load(tmp_path)
    assert (loaded.inputs, loaded.outputs) == (bert.inputs, bert.outputs)
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    twice = find_target(target).executable.load(again)
    for batch, tokens in ((1, 4), (3, 9)):
        inputs = padded(batch, tokens)
        assert difference(bert, executable, inputs) < 1e-5
        assert difference(bert, loaded, inputs) < 1e-5
        assert difference(bert, twice, inputs) < 1e-5


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_artifact_gives_one_error(bert: Program, tmp_path: Path, damage: str) -> None:
    OnnxExecutable.of(bert, threads=1).save(tmp_path)
    path = tmp_path / "model.onnx"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        OnnxExecutable.load(tmp_path)


def test_outputs_outlive_the_session(bert: Program) -> None:
    executable = OnnxExecutable.of(bert, threads=1)
    inputs = padded(2, 6)
    first = executable.run(inputs)
    copies = [x.clone() for x in first]
    for _ in range(3):
        executable.run(padded(2, 6))
    del executable
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))


def test_a_missing_runtime_names_the_extra_to_install(bert: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'tersor\[cpu\]'"):
        OnnxExecutable.of(bert)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'onnx'"):
        find_target("onxx")


def test_the_comparison_sees_a_changed_weight(bert: Program) -> None:
    executable = OnnxExecutable.of(bert, threads=1)
    changed = bert.edit()
    name = next(n for n in changed.weights if n.endswith("word_embeddings.weight"))
    changed.weights[name] = torch.randn_like(changed.weights[name])
    assert difference(changed, executable, padded(2, 6)) > 1e-2


class Names(nn.Module):
    """Its weights are called as its inputs and outputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.cls, self.mul = (nn.Parameter(torch.randn(1, 1, 8)) for _ in range(3))
        self.register_buffer("mask", torch.randn(8))
        self.logits = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = torch.cat(
            [self.cls.expand(len(x), -1, -1), x * mask[..., None] * self.x * self.mul + self.mask], 1
        )
        return {"cls": x[:, 0], "mul": x * 2, "logits.weight": self.logits(x)}


@pytest.mark.parametrize("ops", ["portable", "ort"])
def test_weights_leave_their_names_to_inputs_and_outputs(ops: str, tmp_path: Path) -> None:
    model = Names().eval()
    example = {"x": torch.randn(2, 5, 8), "mask": torch.rand(2, 5)}
    fast = tersor.optimize_model(model, [], "onnx", example_inputs=example, ops=ops)
    fast.save(tmp_path / "out")
    want = model(**example)
    for built in (fast, tersor.load(tmp_path / "out")):
        found = built(**example)
        assert list(found) == list(want)
        for name, value in want.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
