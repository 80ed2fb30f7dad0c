"""Latency in ONNX Runtime on CPU: dropped, undropped, and PyTorch's own export, timed in pairs in one process.

python -m benchmarks.speed                              writes the section `speed` of docs/benchmarks.md
python -m benchmarks.speed --case 257 --seconds 2 --print   a quick look that writes nothing
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from examples.real_data import photographs, prose
from examples.real_models import dinov2_vits14, minilm_l6
from tersor.codegen.onnx.session import chosen_providers, session_from_file, session_options
from tersor.codegen.target import find_target
from tersor.ir.analyses.cost import cost
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes import pipeline
from tersor.runtime.paired import PairedTiming, time_pair

from .exporter import export_untouched, free_dims
from .page import check_limits, provenance, put_section, table

BATCHES = (1, 4)
METHODS = ("zero-tprune", "tome", "cls-attention", "received-attention")
_DROPPED_LIMIT = 1.08  # latency ratio over FLOP ratio
_UNDROPPED_LIMIT = 1.0  # latency over that of PyTorch's export
_MAX_PAIRS = 40
_DROPPED_HEADER = (
    "model", "tokens", "batch", "after / before", "before ms", "after ms", "FLOPs", "latency (95%)", "latency / FLOPs"
)  # fmt: skip
_INTRODUCTION = """\
Token dropping to {flops:.1%} of the FLOPs, which the cost analysis states for the sizes of each row. Every row is one
paired comparison: the two sessions take turns, and the ratio is the median of the pairs' ratios with its 95% interval.
*exporter*: `torch.onnx.export(dynamo=True)` of the original model; *undropped*: the same model through Tersor without
dropping; all in ONNX Runtime with the same settings."""

_console = Console(stderr=True)
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A model at one length, and where its inputs come from."""

    title: str
    tokens: int
    load: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]


def _pixels(size: int) -> Callable[[int], Inputs]:
    return lambda batch: {"pixel_values": photographs(size)[:batch].contiguous()}


def _sections(tokens: int) -> Callable[[int], Inputs]:
    """Sections of the manual, joined until they fill every row: nothing is padded."""

    def inputs(batch: int) -> Inputs:
        tokenizer = minilm_l6()[1]
        texts = [text for _, text in prose()]
        joined = ["\n".join(texts[i::batch]) for i in range(batch)]
        encoded = tokenizer(joined, max_length=tokens, truncation=True, return_tensors="pt")
        return dict(encoded)

    return inputs


CASES = (
    Case("ViT-S/14, 224 px", 257, lambda: dinov2_vits14(224), _pixels(224)),
    Case("ViT-S/14, 518 px", 1370, lambda: dinov2_vits14(518), _pixels(518)),
    Case("MiniLM-L6", 256, lambda: minilm_l6()[0], _sections(256)),
    Case("MiniLM-L6", 512, lambda: minilm_l6()[0], _sections(512)),
)


@dataclass(frozen=True)
class Row:
    """One comparison: ``before`` and ``after`` in the pair are named by ``what``; ``flops`` is 1 for undropped."""

    case: Case
    batch: int
    what: str
    flops: float
    pair: PairedTiming

    @property
    def over_flops(self) -> float:
        return self.pair.ratio / self.flops

    @property
    def over_flops_high(self) -> float:
        return self.pair.high / self.flops


class Bench:
    """One model at one length: its Program, and sessions on what is compared, opened once for all batches."""

    def __init__(self, case: Case, flops: float, methods: Sequence[str], folder: Path) -> None:
        self.case = case
        model = case.load()
        inputs = case.inputs(2)
        self.program = capture(model, inputs)
        exported = folder / f"{case.tokens}-exporter.onnx"
        export_untouched(model, inputs, free_dims(self.program), exported)
        self.exporter = _Timed(session_from_file(exported, session_options(None), chosen_providers(None)))
        self.undropped = self._lowered(self.program)
        self.programs = {method: self._dropped(method, flops) for method in methods}
        self.dropped = {method: self._lowered(program) for method, program in self.programs.items()}

    def rows(self, batch: int, seconds: float) -> Iterator[Row]:
        """Undropped against the exporter's, then every method against both."""
        inputs = self.case.inputs(batch)
        baselines = {"exporter": self.exporter.on(inputs), "undropped": self.undropped.on(inputs)}

        def compare(what: str, before: str, after: Callable[[], Any], flops: float) -> Row:
            pair = time_pair(baselines[before], after, pairs=_MAX_PAIRS, seconds=seconds)
            _console.print(f"{self.case.title} {self.case.tokens} tokens, batch {batch}, {what}: {pair}")
            return Row(self.case, batch, what, flops, pair)

        yield compare("undropped / exporter", "exporter", baselines["undropped"], 1.0)
        for method, program in self.programs.items():
            sizes = self.program.sizes(inputs)
            flops = cost(program).at(**sizes).flops / cost(self.program).at(**sizes).flops
            after = self.dropped[method].on(inputs)
            yield compare(f"{method} / exporter", "exporter", after, flops)
            yield compare(f"{method} / undropped", "undropped", after, flops)

    def _dropped(self, method: str, flops: float) -> Program:
        return pipeline.run(self.program, [f"token-drop:method={method},flops={flops:g}"])[0]

    def _lowered(self, program: Program) -> _Timed:
        return _Timed(find_target("onnx").lower(program).session)  # type: ignore[attr-defined]


class _Timed:
    """A session called in the same way whoever made its model: NumPy in, NumPy out."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [value.name for value in session.get_inputs()]

    def on(self, inputs: Mapping[str, Tensor]) -> Callable[[], Any]:
        feeds = {name: inputs[name].numpy() for name in self.names}
        return lambda: self.session.run(None, feeds)


def section(rows: Sequence[Row], flops: float) -> str:
    """The whole section of the page."""
    undropped = [row for row in rows if row.what == "undropped / exporter"]
    dropped = [row for row in rows if row not in undropped]
    return "\n".join(
        [
            provenance("speed"),
            "",
            _INTRODUCTION.format(flops=flops),
            "",
            "### Undropped, against PyTorch's export",
            "",
            table(
                ["model", "tokens", "batch", "exporter ms", "ours ms", "ratio (95%)"],
                [[*_where(row), *_times(row), _interval(row)] for row in undropped],
            ),
            "",
            _verdict("Ratio", undropped, _UNDROPPED_LIMIT),
            "",
            "### Dropped",
            "",
            table(
                _DROPPED_HEADER,
                [
                    [*_where(row), row.what, *_times(row), f"{row.flops:.3f}", _interval(row), f"{row.over_flops:.3f}"]
                    for row in dropped
                ],
            ),
            "",
            *(
                _verdict(
                    f"Against *{before}*, latency / FLOPs",
                    [row for row in dropped if row.what.endswith(f"/ {before}")],
                    _DROPPED_LIMIT,
                )
                for before in ("exporter", "undropped")
            ),
        ]
    )  # fmt: skip


def _where(row: Row) -> list[str]:
    return [row.case.title, str(row.case.tokens), str(row.batch)]


def _times(row: Row) -> list[str]:
    return [f"{row.pair.before * 1e3:.1f}", f"{row.pair.after * 1e3:.1f}"]


def _interval(row: Row) -> str:
    return f"{row.pair.ratio:.3f} ({row.pair.low:.3f} to {row.pair.high:.3f})"


def missed(rows: Sequence[Row]) -> list[str]:
    """What is past a limit: undropped files, and dropped ones against the exporter."""
    found = []
    for row in rows:
        limit = _UNDROPPED_LIMIT if row.what.startswith("undropped /") else _DROPPED_LIMIT
        if row.what.endswith("/ exporter") and row.over_flops > limit:
            found.append(f"{' '.join(_where(row))}, {row.what}: {row.over_flops:.3f} (limit {limit:g})")
    return found


def _verdict(what: str, rows: Sequence[Row], limit: float) -> str:
    met = sum(row.over_flops <= limit for row in rows)
    surely = sum(row.over_flops_high <= limit for row in rows)
    largest = max(row.over_flops for row in rows)
    return (
        f"{what} at most {limit:g} in {met} of {len(rows)} rows, {surely} of them with the whole interval; "
        f"the largest is {largest:.3f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--flops", type=float, default=0.653, help="share of the FLOPs that dropping leaves")
    parser.add_argument("--seconds", type=float, default=15.0, help="time for each comparison")
    lengths = [case.tokens for case in CASES]
    parser.add_argument("--case", type=int, action="append", choices=lengths, help="only this length")
    parser.add_argument("--batch", type=int, action="append", help="only this batch")
    parser.add_argument("--method", action="append", help="only this method")
    parser.add_argument("--print", action="store_true", help="print the section and write nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a stated limit is missed")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if options.case and case.tokens not in options.case:
                continue
            bench = Bench(case, options.flops, options.method or METHODS, Path(folder))
            for batch in options.batch or BATCHES:
                rows += bench.rows(batch, options.seconds)
    text = section(rows, options.flops)
    put_section("speed", text, bool(options.print or options.case or options.batch or options.method))
    check_limits(missed(rows), options.check)


if __name__ == "__main__":
    main()
