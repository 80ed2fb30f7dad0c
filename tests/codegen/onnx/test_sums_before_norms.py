"""ONNX Runtime must not fuse the sum before a layer norm: its fused operator is the slower one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tersor.codegen.onnx import OnnxExecutable
from tersor.codegen.onnx.export import build
from tersor.codegen.onnx.session import runtime

from .conftest import assert_same, small_program

aten = torch.ops.aten
DIMS = {name: {0: "batch", 1: "tokens"} for name in ("x", "skip")}


def _normed(b: Any, x: Any, skip: Any) -> Any:
    width = x.meta["val"].shape[2]
    added = b.add(x, skip)
    return b.call(aten.layer_norm.default, added, [width]), added


def _case(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.randn(2, 5, 8).to(dtype) for name in DIMS}


def test_the_sum_stays_apart_in_what_onnx_runtime_runs(tmp_path: Path) -> None:
    case = _case(torch.float32)
    program = small_program(_normed, DIMS, case)
    file, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    OnnxExecutable.of(program, ops="ort").save(tmp_path)
    options = runtime().SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 4
    runtime().InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(optimised).graph.node] == ["Sum", "LayerNormalization"]
    assert_same(program.run(case), OnnxExecutable.of(program, ops="ort").run(case), 1e-5)


@pytest.mark.parametrize(
    ("ops", "dtype"), [("portable", torch.float32), ("ort", torch.float16)], ids=["portable", "half"]
)
def test_elsewhere_an_addition_is_an_addition(ops: Any, dtype: torch.dtype) -> None:
    program = small_program(_normed, DIMS, _case(dtype))
    assert "Add" in {node.op_type for node in build(program, ops).graph}
