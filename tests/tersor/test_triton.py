"""``target="triton"`` through the front door, in a process of its own under TRITON_INTERPRET=1.

Triton decides on import whether kernels are interpreted, and other tests of one process import or compile it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "interpreted" / "test_front_door.py"


@pytest.mark.slow
def test_the_front_door_in_the_interpreter() -> None:
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FILE.relative_to(root))],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
