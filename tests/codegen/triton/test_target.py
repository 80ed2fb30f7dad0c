"""What the target says where kernels cannot run, and what importing it costs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tersor.codegen.target import find_target, target_names
from tersor.codegen.triton.call import Fallback
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.lowering import lower

LOWER = """
import torch
from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.errors import LoweringError
class Scale(torch.nn.Module):
    def forward(self, x): return x * 2
try:
    find_target("triton").lower(capture(Scale().eval(), {"x": torch.randn(2, 4)}))
except LoweringError as error:
    print(error)
"""


class Affine(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def python(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_the_target_is_found_by_its_name() -> None:
    assert "triton" in target_names()
    assert find_target("triton").name == "triton"


def test_the_target_imports_without_triton_and_says_so_when_it_is_asked_to_lower() -> None:
    printed = python("import sys\nsys.modules['triton'] = None\n" + LOWER)
    assert "pip install 'tersor[gpu]'" in printed


def test_without_a_gpu_and_the_interpreter_there_is_one_clear_error() -> None:
    printed = python(LOWER, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    assert "needs a GPU" in printed
    assert "TRITON_INTERPRET=1" in printed


def test_asking_for_the_interpreter_too_late_is_named() -> None:
    printed = python("import os, triton\nos.environ['TRITON_INTERPRET'] = '1'\n" + LOWER)
    assert "before Python starts" in printed


def test_an_unknown_option_is_refused() -> None:
    program = capture(Affine().eval(), {"x": torch.randn(2, 4)})
    with pytest.raises(InputError, match="warps"):
        lower(program, "triton", {"warps": 4})


def test_a_fallback_reads_as_a_sentence() -> None:
    text = str(Fallback("attention", "attention_3", "layers.3", "query is float64"))
    assert (
        text
        == "attention_3 in layers.3: the reference runs instead of the attention kernel: query is float64"
    )
