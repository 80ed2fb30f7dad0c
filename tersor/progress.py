"""How long work tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called as a step begins: what it is, how many steps are done, how many there are."""


class Steps:
    """Counts the steps of one piece of work and reports each as it begins."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def begin(self, step: str) -> None:
        if self._report is not None:
            self._report(step, min(self._done, self._total), self._total)
        self._done += 1

    def detail(self, step: str) -> None:
        """Say what the current step is doing, without counting it as another."""
        if self._report is not None:
            self._report(step, min(self._done - 1, self._total), self._total)
