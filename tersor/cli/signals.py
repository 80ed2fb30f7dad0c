"""An end that was asked for comes, and leaves no unfinished files, whatever code is running when the signal arrives."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

_GRACE_SECONDS = 5.0
_asked: int | None = None  # the signal that asked for the end


def end_on_signals() -> None:
    """Let SIGTERM and SIGINT end this process; without effect outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGINT, _end)


def ending() -> int | None:
    """The exit code of the end that a signal has asked for; None where none has."""
    return None if _asked is None else 128 + _asked


def _end(number: int, _: FrameType | None) -> None:
    global _asked
    if _asked is not None:
        return  # another exception would break off the removal of files
    _asked = number
    # Raising runs the `finally` blocks that remove unfinished files.  But a handler runs in the middle of whatever
    # the main thread does: an exception that is raised in a callback of the garbage collector or of a C library
    # is printed and forgotten, and some libraries catch everything.  So there is a second way out.
    watch = threading.Timer(_GRACE_SECONDS, _end_now, [number])
    watch.daemon = True
    watch.start()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _end_now(number: int) -> NoReturn:
    folders = sys.modules.get(f"{__name__.partition('.')[0]}.folders")
    if folders is not None:
        folders.abandon_unfinished()
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the progress bar hides the cursor
        sys.stderr.flush()
    os._exit(128 + number)
