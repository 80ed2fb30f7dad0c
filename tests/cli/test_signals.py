"""A process that is asked to end does, though the code that runs catches everything."""

from __future__ import annotations

import os
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


WRAPPING = """
import os, signal, sys, time
from pathlib import Path
from tersor.cli.app import app, main
from tersor.folders import whole_folder
from tersor.ir.errors import LoweringError

@app.command("work")
def work(out: Path) -> None:
    with whole_folder(out) as folder:
        (folder / "half").write_text("x")
        try:
            os.kill(os.getpid(), int(os.environ["NUMBER"]))
            time.sleep(10)
        except BaseException as error:
            raise LoweringError("something") from error

sys.argv = ["tersor", "work", sys.argv[1]]
main()
"""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGTERM, ""), (signal.SIGINT, "error: interrupted\n")], ids=["term", "int"]
)
def test_a_signal_is_the_reason_whatever_a_library_made_of_it(
    number: signal.Signals, said: str, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", WRAPPING, str(place / "out")],
        env=os.environ | {"NUMBER": str(int(number))},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (128 + number, said)
    assert not list(place.iterdir())


def test_an_interruption_is_said_in_json_too(tmp_path: Path) -> None:
    program = "import os, signal; from tersor.cli import app as _; from tersor.cli.app import app, main\n"
    program += "@app.command('work')\ndef work(json: bool = False) -> None:\n"
    program += "    os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(10)\n"
    for options, said in (([], "error: interrupted\n"), (["--json"], "")):
        code = f"{program}import sys; sys.argv = ['tersor', 'work', *{options!r}]; main()"
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
        assert result.returncode == 130
        assert result.stderr == said or options
        assert bool(result.stdout) is bool(options)
