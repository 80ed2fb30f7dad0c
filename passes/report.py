"""What the pipeline did: per pass what it promised, what was measured, and what it cost before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from tersor.ir.analyses.cost import Totals, cost
from tersor.ir.program import Program

from .contract import Promise, Site
from .deviation import Deviation
from .storage import Storage

if TYPE_CHECKING:
    from rich.table import Table

Verdict = Literal["kept", "reverted", "refused", "unchanged"]


@dataclass(frozen=True)
class Step:
    """One pass.

    Attributes:
        spec: the pass and its options, as a spec string.
        sites: where it acted, or would have.
        reason: why it was reverted, refused or had nothing to do; empty when it was kept.
        deviation: from the captured Program for an approximate pass, from the Program before it otherwise.
        before, after: cost at the calibration inputs' sizes; None where a size depends on data.
        latency_ratio: measured time after over before; below 1 is faster.
        seconds: time the pass and its checks took.
    """

    spec: str
    family: str
    promise: Promise
    verdict: Verdict
    reason: str = ""
    sites: tuple[Site, ...] = ()
    deviation: Deviation | None = None
    before: Totals | None = None
    after: Totals | None = None
    latency_ratio: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "family": self.family,
            "promise": self.promise.value,
            "verdict": self.verdict,
            "reason": self.reason,
            "sites": [{"node": s.node, "layer": s.layer, "facts": _plain(s.facts)} for s in self.sites],
            "deviation": _plain(self.deviation.to_json()) if self.deviation else None,
            "before": asdict(self.before) if self.before else None,
            "after": asdict(self.after) if self.after else None,
            "latency_ratio": self.latency_ratio,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Report:
    """All passes of one run of the pipeline, in order, and the sizes at which costs are stated.

    Attributes:
        samples: calibration inputs that the promises were checked on.
        deviation: of the final Program from the captured one.
        notes: what capture had to settle without being asked, one line each.
        storage: what it costs to store weights in fewer bits; None where they are stored as they are.
    """

    steps: tuple[Step, ...]
    sizes: Mapping[str, int]
    samples: int
    deviation: Deviation | None = None
    notes: tuple[str, ...] = ()
    storage: Storage | None = None

    @property
    def kept(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.verdict == "kept")

    @property
    def before(self) -> Totals | None:
        return self.steps[0].before if self.steps else None

    @property
    def after(self) -> Totals | None:
        return self.steps[-1].after if self.steps else None

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``; infinities and NaN as strings."""
        return {
            "sizes": dict(self.sizes),
            "samples": self.samples,
            "before": asdict(self.before) if self.before else None,
            "after": asdict(self.after) if self.after else None,
            "deviation": _plain(self.deviation.to_json()) if self.deviation else None,
            "notes": list(self.notes),
            "storage": _plain(self.storage.to_json()) if self.storage else None,
            "steps": [step.to_json() for step in self.steps],
        }

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        lines = [f"{len(self.kept)} of {len(self.steps)} passes kept{f' at {sizes}' if sizes else ''}"]
        for step in self.steps:
            cells = [
                f"{label} {cell}" for label, cell in zip(_COLUMNS[2:-1], _cells(step)[2:-1], strict=True)
            ]
            told = ", ".join(cell for cell in cells if not cell.endswith(" -"))
            lines.append(f"  {step.spec}: {step.verdict}{f' ({step.reason})' if step.reason else ''}; {told}")
        stored = [f"  {self.storage}"] if self.storage else []
        return "\n".join([*lines, *stored, *(f"  note: {note}" for note in self.notes)])

    def table(self) -> Table:
        """A rich table, one row a pass."""
        from rich.table import Table

        table = Table(
            title="passes" + "".join(f", {name} {size}" for name, size in self.sizes.items()),
            caption="\n".join(
                [*([str(self.storage)] if self.storage else []), *(f"note: {note}" for note in self.notes)]
            )
            or None,
        )
        table.add_column(_COLUMNS[0], overflow="fold")
        for column in _COLUMNS[1:-1]:
            table.add_column(column, no_wrap=True)
        for step in self.steps:
            first, *others, reason = _cells(step)
            table.add_row(f"{first}\n{reason}" if reason else first, *others)
        return table


def totals_at(program: Program, sizes: Mapping[str, int]) -> Totals | None:
    """What ``program`` costs at these sizes of its dimensions; None where a size depends on data."""
    total = program.analysis(cost)
    sizes = program.step_sizes(sizes)
    if set(total.dims) - sizes.keys():
        return None
    return total.at(**{name: sizes[name] for name in total.dims})  # type: ignore[no-any-return]


_COLUMNS = (
    "pass",
    "verdict",
    "promise",
    "sites",
    "deviation",
    "top-1",
    "FLOPs",
    "bytes",
    "parameters",
    "latency",
    "why",
)


def _cells(step: Step) -> tuple[str, ...]:
    deviation, agreement = step.deviation, step.deviation and step.deviation.top1_agreement
    return (
        step.spec,
        step.verdict,
        step.promise.value,
        str(len(step.sites)),
        "-" if deviation is None else f"{deviation.overall:.3g}",
        "-" if agreement is None else f"{agreement:.1%}",
        *(_change(step, quantity) for quantity in ("flops", "bytes", "parameters")),
        "-" if step.latency_ratio is None else f"{step.latency_ratio:.3f}x",
        step.reason,
    )


def _change(step: Step, quantity: str) -> str:
    if step.before is None or step.after is None:
        return "-"
    before, after = getattr(step.before, quantity), getattr(step.after, quantity)
    return _short(before) if before == after else f"{_short(before)} to {_short(after)}"


def _short(number: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:g}"


def _plain(value: Any) -> Any:
    """Facts and measurements as JSON: what JSON has no word for becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
