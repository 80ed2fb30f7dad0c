"""Every architecture of the matrix is captured whole, computes what the model computes, and runs in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import ARCHITECTURES, Architecture
from capture_matrix import measure

by_name = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)


def check(architecture: Architecture, problem: str) -> None:
    if architecture.fails:
        assert problem, f"{architecture.name} passes now: remove its `fails`"
        assert architecture.told, "without it any other reason would do"
        assert architecture.told in problem
    else:
        assert not problem


@by_name
def test_attention_is_found_and_the_output_is_the_models(architecture):
    row = measure(architecture, onnx=False)
    check(architecture, row.problem)
    (stated,) = [cells[6:8] for cells in page_rows() if cells[0] == architecture.name]
    assert stated == row.legal, "run docs/make_coverage.py"


@pytest.mark.slow
@by_name
def test_the_onnx_file_is_right_at_another_batch_and_length(architecture):
    check(architecture, measure(architecture, onnx=True).problem)


def test_the_matrix_is_wide_and_few_rows_are_known_to_fail():
    assert len(ARCHITECTURES) >= 40
    assert len({a.name for a in ARCHITECTURES}) == len(ARCHITECTURES)
    assert sum(bool(a.fails) for a in ARCHITECTURES) <= len(ARCHITECTURES) // 10


def test_the_coverage_page_has_a_row_for_every_architecture():
    rows = page_rows()
    assert [cells[0] for cells in rows] == [a.name for a in ARCHITECTURES]
    assert [cells[-1] for cells in rows] == [a.fails for a in ARCHITECTURES]


def page_rows() -> list[list[str]]:
    page = (Path(__file__).parents[1] / "docs" / "coverage.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
