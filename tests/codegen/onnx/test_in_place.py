"""A written file whose weights are read from where they lie in it."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
import torch
from onnx.external_data_helper import load_external_data_for_model
from torch import nn

from tersor.codegen.onnx import export
from tersor.codegen.onnx.file import INLINE_BYTES
from tersor.codegen.onnx.in_place import weights_in_place
from tersor.codegen.onnx.session import run, trial_session
from tersor.ir.capture import capture
from tersor.ir.errors import ArtifactError
from tersor.ir.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return capture(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 7, 32))


@pytest.fixture
def path(program: Program, tmp_path: Path) -> Path:
    export(program, tmp_path / "model.onnx", metadata={"key": "value"})
    return tmp_path / "model.onnx"


def test_every_large_weight_is_a_range_of_bytes_of_the_file(path: Path) -> None:
    model = onnx.ModelProto.FromString(weights_in_place(path))
    for tensor in model.graph.initializer:
        assert len(tensor.raw_data) <= INLINE_BYTES
    moved = [t for t in model.graph.initializer if t.external_data]
    assert len(moved) >= 6
    load_external_data_for_model(model, str(path.parent))
    for tensor in moved:
        tensor.ClearField("data_location")
    assert model == onnx.load(path)


def test_the_session_computes_with_the_bytes_of_the_file(program: Program, path: Path) -> None:
    inputs = {program.inputs[0].name: torch.randn(3, 5, 32)}
    (want,) = program.run(inputs)
    (got,) = run(trial_session(path), inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    last = onnx.ModelProto.FromString(weights_in_place(path)).graph.initializer[-1]
    named = {entry.key: entry.value for entry in last.external_data}
    with path.open("r+b") as stream:
        stream.seek(int(named["offset"]))
        stream.write(bytes(int(named["length"])))
    (other,) = run(trial_session(path), inputs)
    assert not torch.allclose(other, want, atol=1e-2), "a damaged weight must be seen"


def test_weights_in_a_second_file_stay_there(program: Program, tmp_path: Path) -> None:
    export(program, tmp_path / "model.onnx", limit=1 << 10)
    inputs = {program.inputs[0].name: torch.randn(1, 4, 32)}
    (got,) = run(trial_session(tmp_path / "model.onnx"), inputs)
    torch.testing.assert_close(got, program.run(inputs)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_is_refused_by_name(path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        trial_session(path)


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\xff" * 40])
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        trial_session(tmp_path / "model.onnx")
