"""What token dropping costs in quality: every method, on real data, at equal FLOPs, against random choice.

python -m benchmarks.quality                     writes the section `quality` of docs/benchmarks.md
python -m benchmarks.quality --crops 2 --print   a quick look that writes nothing
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console

from tersor.ir.analyses.cost import cost
from tersor.ir.program import Program
from tersor.passes.contract import Refusal
from tersor.passes.registry import find_methods
from tersor.passes.tokens.method import TokenMethod

from .flops import counted_flops
from .metrics import Margin, Values, margin
from .page import check_limits, provenance, put_section, table
from .tasks import Manual, Photographs, Task

OPERATING_POINTS = (0.653, 0.5)  # Zero-TPrune's 34.7% fewer FLOPs, and half of them
_AGREEMENT = 0.01  # how far the cost analysis may be from the counter, and a method from the operating point
_CONTROLS = ("random", "norm")
_INTRODUCTION = """\
Every method runs at its default options and at the same FLOPs, which the cost analysis solves for and
`torch.utils.flop_counter` counts again (*counted*). *Over random*: difference of means from random choice, and its 95%
interval, in bold where it lies above zero: a bootstrap over what the items came from, photographs and pages of the
manual, whose items are alike, and over the seeds of random choice. `norm` is a control too. *Picture found* and
*accuracy@1* are shown beside what decides: the first is near its ceiling, the second a coarser mean reciprocal rank."""

_console = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """One method at one operating point: its share of the FLOPs by analysis and by counter, and its scores."""

    flops: float
    counted: float
    scores: dict[str, Values]


def measure(task: Task, options: str, flops: float) -> Row | str:
    """Scores of ``token-drop`` with ``options`` on ``task``, or why it cannot be used there.

    Raises:
        RuntimeError: the operating point was missed, or the cost analysis and the counter disagree.
    """
    program = task.dropped(f"token-drop:{options},flops={flops:g}")
    if isinstance(program, Refusal):
        return str(program)
    share, counted = _shares(task, program)
    if abs(share - flops) > _AGREEMENT * flops:
        raise RuntimeError(f"{options} costs {share:.4f} of the FLOPs where {flops} was asked for")
    if abs(counted - share) > _AGREEMENT * counted:
        raise RuntimeError(f"{options}: the cost analysis says {share:.4f}, torch counts {counted:.4f}")
    return Row(share, counted, task.scores(program))


def _shares(task: Task, program: Program) -> tuple[float, float]:
    """FLOPs of ``program`` over those of the undropped model: by analysis, and counted while running."""
    one = {name: value[: task.sizes["batch"]] for name, value in task.program.example_inputs.items()}
    analysed = (cost(p).at(**task.sizes).flops for p in (program, task.program))
    counted = (counted_flops(p, one) for p in (program, task.program))
    return next(analysed) / next(analysed), next(counted) / next(counted)


def control(rows: Sequence[Row]) -> dict[str, Values]:
    """Scores of random choice, ``[seeds, items]`` each."""
    return {name: np.stack([row.scores[name] for row in rows]) for name in rows[0].scores}


@dataclass(frozen=True)
class Comparison:
    """All methods on one task at one operating point.

    Attributes:
        seeds: the rows of random choice.  rows: those of every other method, by its name.
        refused: why the others cannot be used here.
    """

    task: Task
    flops: float
    seeds: list[Row]
    rows: dict[str, Row]
    refused: dict[str, str]

    def over_random(self, name: str, metric: str) -> Margin:
        return margin(self.rows[name].scores[metric], control(self.seeds)[metric], self.task.clusters)

    def markdown(self) -> str:
        level = control(self.seeds)
        lines = [_cells(f"random (control, {len(self.seeds)} seeds)", self.seeds[0])]
        for metric in self.task.metrics:
            lines[0] += [f"{level[metric].mean():.3f}", ""]
        for name, row in self.rows.items():
            lines.append(_cells(f"{name} (control)" if name in _CONTROLS else name, row))
            for metric in self.task.metrics:
                over = _margin_text(self.over_random(name, metric))
                lines[-1] += [f"{row.scores[metric].mean():.3f}", over]
        header = ["method", "FLOPs", "counted"]
        for metric in self.task.metrics:
            header += [metric, "over random"]
        text = f"**{self.flops:.1%} of the FLOPs**\n\n{table(header, lines)}"
        if self.refused:
            reasons = (f"`{name}`: {reason}" for name, reason in self.refused.items())
            text += f"\n\nNot usable here: {'; '.join(reasons)}."
        return text


def compare(task: Task, flops: float, seeds: int, only: Sequence[str]) -> Comparison:
    """Every method, or those of ``only``, measured beside random choice."""
    random = [_checked(measure(task, f"method=random,seed={seed}", flops)) for seed in range(seeds)]
    rows: dict[str, Row] = {}
    refused: dict[str, str] = {}
    for name in find_methods(TokenMethod):
        if name == "random" or (only and name not in only):
            continue
        start = time.perf_counter()
        row = measure(task, f"method={name}", flops)
        _console.print(f"{task.title}  {flops}  {name}  {time.perf_counter() - start:.0f} s")
        if isinstance(row, str):
            refused[name] = row
        else:
            rows[name] = row
    return Comparison(task, flops, random, rows, refused)


def missed(comparisons: Sequence[Comparison]) -> list[str]:
    """Rows of real methods that do not beat random choice, with the metric."""
    return [
        f"`{name}` on {found.task.title} at {found.flops:.1%} ({metric} {margin.value:+.3f})"
        for found in comparisons
        for name in found.rows
        for metric in found.task.deciding
        if name not in _CONTROLS and (margin := found.over_random(name, metric)).value <= 0
    ]


def verdict(comparisons: Sequence[Comparison]) -> str:
    """How many rows of real methods beat random choice in all that decides, and which do not."""
    rows = surely = 0
    behind = missed(comparisons)
    for found in comparisons:
        for name in found.rows:
            if name in _CONTROLS:
                continue
            margins = {metric: found.over_random(name, metric) for metric in found.task.deciding}
            rows += 1
            surely += all(m.low > 0 for m in margins.values())
    deciding = dict.fromkeys(metric for found in comparisons for metric in found.task.deciding)
    beaten = rows - len({text.split(" (")[0] for text in behind})
    text = (
        f"**Verdict.** {beaten} of {rows} rows of real methods beat random choice at equal FLOPs on what decides "
        f"({', '.join(deciding)}), {surely} of them with every such interval above zero."
    )
    return f"{text} Not: {'; '.join(behind)}." if behind else text


def _checked(row: Row | str) -> Row:
    if isinstance(row, str):
        raise RuntimeError(f"random choice, the control, was refused: {row}")
    return row


def _cells(label: str, row: Row) -> list[str]:
    return [label, f"{row.flops:.3f}", f"{row.counted:.3f}"]


def _margin_text(found: Margin) -> str:
    text = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    return f"**{text}**" if found.low > 0 else text


def section(tasks: Sequence[Task], seeds: int, only: Sequence[str]) -> tuple[str, list[str]]:
    """The whole section of the page, and which rows miss what is asked of them."""
    parts = [provenance("quality"), "", _INTRODUCTION]
    comparisons: list[Comparison] = []
    for task in tasks:
        whole = task.scores(task.program)
        levels = ", ".join(f"{name} {whole[name].mean():.3f}" for name in task.metrics)
        parts += ["", f"### {task.title}", "", task.describe(), "", f"Undropped: {levels}."]
        for flops in OPERATING_POINTS:
            comparisons.append(compare(task, flops, seeds, only))
            parts += ["", comparisons[-1].markdown()]
    return "\n".join([*parts, "", verdict(comparisons)]), missed(comparisons)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--crops", type=int, default=16, help="crops of each photograph")
    parser.add_argument("--seeds", type=int, default=5, help="seeds that random choice is averaged over")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0 = as torch chooses)")
    parser.add_argument("--task", choices=("photographs", "manual"), help="only this one; writes nothing")
    parser.add_argument(
        "--method", action="append", default=[], help="only this one, repeatable; writes nothing"
    )
    parser.add_argument("--print", action="store_true", help="print the section and write nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a stated limit is missed")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    tasks: list[Task] = []
    if options.task in (None, "photographs"):
        tasks.append(Photographs(options.crops))
    if options.task in (None, "manual"):
        tasks.append(Manual())
    text, behind = section(tasks, options.seeds, options.method)
    put_section("quality", text, bool(options.print or options.task or options.method))
    check_limits(behind, options.check)


if __name__ == "__main__":
    main()
