"""Where tests run kernels: in Triton's interpreter, and on the GPU where there is one.

Triton decides on import whether kernels are interpreted, and other tests of one process import or compile it: tests
that run kernels lie in folders called ``kernels``, and run in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
_INTERPRETER, _GPU = "TRITON_INTERPRET", "TERSOR_TEST_GPU"
PLACES = {"interpreter": _INTERPRETER} | ({"gpu": _GPU} if torch.cuda.is_available() else {})


def run_tests(file: Path, place: str) -> None:
    """Run the tests of a file in a place of ``PLACES``.

    Raises:
        AssertionError: one of them failed, or there is none.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in PLACES.values()}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file.relative_to(ROOT))],
        cwd=ROOT,
        env={**inherited, PLACES[place]: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def ignored_files() -> list[str]:
    """What a folder of such tests leaves out (``collect_ignore_glob``): all of them, where no place was chosen."""
    return [] if {_INTERPRETER, _GPU} & os.environ.keys() else ["test_*.py"]


def device() -> torch.device:
    """Where operands of kernels have to be."""
    return torch.device("cuda" if os.environ.get(_GPU) else "cpu")


def examples(count: int) -> int:
    """How many examples to draw of such as need a kernel of their own each, which a GPU has to compile."""
    return max(1, count // 8) if os.environ.get(_GPU) else count


def tune_nothing() -> None:
    """On a GPU let kernels have their smallest configuration alone, before they are imported: tuning compiles all."""
    if os.environ.get(_GPU):
        import triton

        tuned = triton.autotune
        triton.autotune = lambda configs, key: tuned(configs=configs[-1:], key=key)
