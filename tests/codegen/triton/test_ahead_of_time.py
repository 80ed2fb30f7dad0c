"""Kernels compile for GPUs that are not here, in a process that does not interpret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
REGISTERS = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}


def table(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "tersor.codegen.triton.table", *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def usages(*arguments: str) -> dict[str, dict[str, dict[str, int]]]:
    run = table("--json", *arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kernel", ["attention", "importance"])
@pytest.mark.parametrize("operands", ["padding", "every operand"])
def test_attention_and_importance_compile_for_sm_90(kernel: str, operands: str) -> None:
    rows = usages("--arch", "sm_90", "--only", f"{kernel} fp16, head_dim 64, {operands}")
    assert len(rows) == 1
    usage = next(iter(rows.values()))["sm_90"]
    assert 0 < usage["registers"] <= REGISTERS["sm_90"]
    assert usage["spills"] == 0
    assert usage["shared"] <= SHARED["sm_90"]


def test_selection_compiles_for_sm_90() -> None:
    rows = usages("--arch", "sm_90", "--only", "select")
    assert len(rows) >= 5
    assert all(0 < row["sm_90"]["registers"] <= 255 and row["sm_90"]["spills"] == 0 for row in rows.values())


@pytest.mark.slow
def test_every_variant_compiles_for_every_architecture() -> None:
    rows = usages()
    assert rows
    for cells in rows.values():
        assert cells.keys() == REGISTERS.keys()
        assert all(0 < cells[arch]["registers"] <= most for arch, most in REGISTERS.items())
        assert all(cells[arch]["shared"] <= most for arch, most in SHARED.items())


@pytest.mark.slow
def test_the_table_in_the_docs_is_the_one_the_command_makes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "triton.md").read_text()
    copy = tmp_path / "triton.md"
    copy.write_text(page)
    assert table("--write", str(copy)).returncode == 0
    made = [line.split("|")[1].strip() for line in copy.read_text().splitlines() if line.startswith("| ")]
    kept = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert made == kept


def test_a_variant_that_does_not_exist_is_an_error() -> None:
    run = table("--only", "no such kernel")
    assert run.returncode == 2
    assert "no kernel variant" in run.stderr


def test_compiling_under_the_interpreter_is_refused() -> None:
    run = table("--arch", "sm_90", "--only", "select", TRITON_INTERPRET="1")
    assert run.returncode != 0
    assert "unset it" in run.stderr
