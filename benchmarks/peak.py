"""The most memory a process holds while something runs."""

from __future__ import annotations

import gc
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # the code by which Linux sets the high-water mark back to what is held now


class PeakMemory:
    """A context in which the kernel's own high-water mark of resident memory counts from zero.

    Memory mapped from files counts as well, once it was read.

    Attributes:
        bytes: after the context, the peak above what was held when it was entered.
    """

    bytes: int = 0

    def __enter__(self) -> Self:
        gc.collect()
        _RESET.write_text(_RESET_PEAK)
        self._before = _held("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bytes = _held("VmHWM") - self._before


def _held(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")
