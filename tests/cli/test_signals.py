"""A process that is asked to end does, though the code that runs catches everything."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

STUBBORN = """
import sys, time
from pathlib import Path
from tersor.cli import signals
from tersor.folders import whole_folder

signals._GRACE_SECONDS = 0.5
signals.end_on_signals()
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    for turn in range(300):
        try:
            if turn == 0:
                print("ready", flush=True)
            time.sleep(0.1)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_swallowed_signal_ends_the_process_and_its_unfinished_files(
    number: signal.Signals, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-c", STUBBORN, str(place / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (128 + number, "")
    assert not list(place.iterdir())
