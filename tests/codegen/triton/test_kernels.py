"""Runs the files of ``kernels/`` in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_places import PLACES, run_tests

FILES = sorted((Path(__file__).parent / "kernels").glob("test_*.py"))


def test_there_are_tests_of_kernels() -> None:
    assert len(FILES) >= 5


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels(file: Path, place: str) -> None:
    run_tests(file, place)
