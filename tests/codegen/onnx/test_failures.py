"""What ONNX Runtime cannot do comes as one of our errors, which says where and what to do; nothing else is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.errors import ArtifactError, ExecutionError, LoweringError

from .conftest import small_program

aten = torch.ops.aten


def erf(b: Any, x: Any) -> Any:
    return b.call(aten.erf.default, x)


def product(b: Any, x: Any) -> Any:
    return b.call(aten.matmul.default, x, x)


def summed(b: Any, x: Any) -> Any:
    return b.call(aten.einsum.default, "ab,bc->ac", [x, x])


def rows(b: Any, x: Any, index: Any) -> Any:
    return b.call(aten.index_select.default, x, 0, index)


@pytest.mark.parametrize(
    ("build", "dtype", "lacking"),
    [
        (product, torch.bfloat16, r"no CPU kernel for MatMul in bfloat16 \(node 'MatMul_\d+'\)"),
        (summed, torch.bfloat16, r"no CPU kernel for Einsum in bfloat16 \(node 'Einsum_\d+'\)"),
        (erf, torch.float64, r"no CPU kernel for Erf in float64 \(node 'Erf_\d+'\)"),
    ],
    ids=["bfloat16", "a type that is refused", "float64"],
)
def test_a_dtype_without_a_kernel_is_named_with_the_way_out(
    build: Any, dtype: torch.dtype, lacking: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program = small_program(build, {}, {"x": torch.randn(3, 3).to(dtype)})
    with pytest.raises(LoweringError, match=rf"{lacking}; .*model\.float\(\).*target='torch'") as caught:
        OnnxExecutable.of(program, providers=["CPUExecutionProvider"])
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_run_that_fails_names_the_node_and_the_inputs_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    example = {"x": torch.randn(4, 3), "index": torch.tensor([0, 3])}
    built = OnnxExecutable.of(small_program(rows, {"index": {0: "n"}}, example), threads=1)
    built.save(tmp_path)
    for executable in (built, OnnxExecutable.load(tmp_path)):
        with pytest.raises(ExecutionError, match=r"node 'Gather_\d+' \(Gather\): .*idx=7") as caught:
            executable.run({"x": example["x"], "index": torch.tensor([0, 7, 1])})
        assert "x [4, 3] torch.float32, index [3] torch.int64" in str(caught.value)
        assert torch.equal(executable.run(example)[0], example["x"][[0, 3]]), "the session is still good"
    assert capfd.readouterr() == ("", "")


def test_a_file_of_other_operators_is_refused_by_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    OnnxExecutable.of(small_program(erf, {}, {"x": torch.randn(3)}), threads=1).save(tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(path.read_bytes().replace(b"Erf", b"Xrf"))
    with pytest.raises(ArtifactError, match=r"cannot load .*model\.onnx: .*Xrf"):
        OnnxExecutable.load(tmp_path)
    assert capfd.readouterr() == ("", "")
