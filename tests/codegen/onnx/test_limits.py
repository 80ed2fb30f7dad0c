"""A file refuses what its Program does not stand for the model on, as calls in this process do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from attends import CHANNELS, Attends
from torch import Tensor, nn

import tersor
from tersor.codegen.onnx.export import build
from tersor.codegen.onnx.limits import LIMITS
from tersor.codegen.onnx.session import runtime


class Stretching(nn.Module):
    """Scales by its length beyond 32, which no trace of a shorter one shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) * max(1.0, x.shape[1] / 32)


def exported(model: nn.Module, example: Any, path: Path) -> tuple[Any, Any]:
    fast = tersor.optimize_model(model.eval(), [], "onnx", example_inputs=example)
    (file,) = fast.export_onnx(path / "model.onnx")
    options = runtime().SessionOptions()
    options.log_severity_level = 4
    return fast, runtime().InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def test_a_file_refuses_sizes_that_the_program_refuses(tmp_path: Path) -> None:
    model = Stretching()
    fast, session = exported(model, {"x": torch.randn(2, 8, 4)}, tmp_path)
    assert fast.program.ranges["tokens"] == (1, 32)
    for tokens in (1, 8, 32):
        x = torch.randn(3, tokens, 4)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x))
    with pytest.raises(Exception, match="tokens out of its range"):
        session.run(None, {"x": torch.randn(3, 33, 4).numpy()})
    told = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(told[LIMITS]) == {
        "dimensions": {"tokens": [1, 32]},
        "inputs": {},
        "rows_are_not_all": {},
    }


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_a_file_refuses_ids_that_number_no_row(dtype: torch.dtype, tmp_path: Path) -> None:
    _, session = exported(nn.Embedding(20, 4), {"input": torch.ones(2, 5, dtype=dtype)}, tmp_path)
    assert session.run(None, {"input": torch.full((1, 3), 19, dtype=dtype).numpy()})[0].shape == (1, 3, 4)
    for wrong, what in ((-1, "input out of its domain"), (20, "")):
        with pytest.raises(Exception, match=what):
            session.run(None, {"input": torch.full((1, 3), wrong, dtype=dtype).numpy()})
    told = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(told[LIMITS])["inputs"] == {"input": [0, 19]}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_a_file_refuses_numbers_that_make_no_sense_to_the_model(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Attends(lambda scores, mask: scores + (1.0 - mask[:, None, None].float()) * -1e4)
    x, mask = torch.randn(2, 8, CHANNELS), torch.ones(2, 8, dtype=dtype)
    fast, session = exported(model, {"x": x, "mask": mask}, tmp_path)
    assert fast.program.domains["mask"][1] == 1
    mask[1, 5:] = 0
    with torch.no_grad():
        expected = model(x, mask)
    found = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})[0]
    torch.testing.assert_close(
        torch.from_numpy(found)[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4
    )
    with pytest.raises(Exception, match="mask out of its domain"):
        session.run(None, {"x": x.numpy(), "mask": (mask * 2).numpy()})


def test_sessions_check_before_they_run_and_need_no_operators_for_it() -> None:
    program = tersor.capture(Stretching().eval(), {"x": torch.randn(2, 8, 4)})
    ops = {node.op_type for node in build(program, "ort", for_session=True).graph}
    assert "Gather" not in ops
