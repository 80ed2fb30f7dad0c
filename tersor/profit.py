"""Whether a pass pays where the result runs: lowered before and after, timed in alternation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .calibration import Batch
from .codegen.stepped import called_whole
from .codegen.target import Executable, Target
from .ir.program import Program
from .runtime.paired import PairedTiming, time_pair

_PAIRS = 15
_SECONDS = 20.0


@dataclass
class Profit:
    """Calling it with the Program before a pass and the one after gives the ratio of their latencies.

    Attributes:
        target, options: what both are lowered to.
        batch: what both are run on, on the device where it will be given.
        report: told what is being timed.
        timings: every measurement so far, in order.
    """

    target: Target
    options: Mapping[str, Any]
    batch: Batch
    report: Callable[[str], None] = lambda _: None
    timings: list[PairedTiming] = field(default_factory=list)
    _lowered: list[tuple[Program, Executable]] = field(default_factory=list)

    def __call__(self, before: Program, after: Program) -> float:
        """Median of the paired ratios; below 1 where ``after`` is faster."""
        self.report("timing the program before and after")
        old, new = self._lower(before), self._lower(after)
        timing = time_pair(lambda: self._run(old), lambda: self._run(new), pairs=_PAIRS, seconds=_SECONDS)
        self.timings.append(timing)
        return timing.ratio

    def _run(self, executable: Executable) -> None:
        results = executable.run(self.batch)
        if any(result.is_cuda for result in results):
            torch.cuda.synchronize()

    def _lower(self, program: Program) -> Executable:
        for known, executable in self._lowered:
            if known is program:
                return executable
        executable = called_whole(self.target.lower(program, **self.options), program.stepping)
        # What follows is compared with one of these two: the pass is kept, or it is reverted.
        self._lowered = [*self._lowered[-1:], (program, executable)]
        return executable
