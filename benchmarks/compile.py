"""What compiling costs: Tersor's capture, passes and ONNX file against PyTorch's exporter on the untouched model.

    python -m benchmarks.compile                              writes the section `compile` of docs/benchmarks.md
    python -m benchmarks.compile --model vit --runs 1 --print    a quick look that writes nothing

Every measurement is a process of its own, the two sides in turn.  *Warm* processes first compile a small model of the
same kind, and then measure time, and memory above what they held until then.  *Cold* ones compile nothing first: what
a side imports counts, beyond PyTorch and the model's library, which made the model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor, nn

from examples.real_data import photographs
from examples.real_models import dinov2_vits14

from .page import check_limits, provenance, put_section, table
from .peak import PeakMemory

if TYPE_CHECKING:
    from .exporter import Dims

_BATCH, _TOKENS = {0: "batch"}, {0: "batch", 1: "tokens"}
_SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
_INTRODUCTION = """\
Seconds from the model in memory to the ONNX file: median (smallest to largest) of {runs} processes of each side and
kind, which take turns. *Warm*: each process has compiled a small model of the same kind before, so that imports and
what is done once a process count on neither side. *Cold*: the first thing that a new process compiles; it imports
PyTorch and makes the model before the clock starts, and what else a side imports counts. Tersor's side captures,
rewrites, checks the promise, writes, and runs the file to compare it with the Program; the exporter's writes the
untouched model and checks nothing. *Stages* are of the warm process whose time is the median. *Peak*, in warm
processes: the most memory above what the process held before the model was made, the model included, over the size of
its weights."""
_console = Console(stderr=True)
Made = tuple[nn.Module, dict[str, Tensor]]


@dataclass(frozen=True)
class Subject:
    """A model to compile.

    Attributes:
        make: the model and example inputs; a small model of the same kind when asked with True.
        dims: sizes that stay free, for both sides.
        passes: what Tersor does to it; the exporter does nothing of the kind.
        ratio, seconds: the limits that were set for time over the exporter's, and for time.
    """

    title: str
    make: Callable[[bool], Made]
    dims: Dims
    passes: tuple[str, ...]
    ratio: float
    seconds: float | None = None


def _vit(small: bool) -> Made:
    from transformers import Dinov2Config, Dinov2Model

    inputs = {"pixel_values": photographs(224)[:2]}
    if small:
        return Dinov2Model(Dinov2Config(**_SMALL, image_size=224, patch_size=14)).eval(), inputs
    return dinov2_vits14(224), inputs


def _decoder(small: bool) -> Made:
    """Gemma 3 270M's shape with random weights: grouped queries, 18 layers, 262,144 tied embeddings."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    full, windowed = "full_attention", "sliding_attention"
    sizes = dict(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        query_pre_attn_scalar=256,
        tie_word_embeddings=True,
        use_cache=False,
    )
    if small:
        sizes |= _SMALL | {"vocab_size": 1000, "intermediate_size": 128}
    layers = [full if layer % 6 == 5 else windowed for layer in range(sizes["num_hidden_layers"])]
    config = Gemma3TextConfig(**sizes, layer_types=layers)
    ids = torch.randint(0, config.vocab_size, (2, 64))
    return Gemma3ForCausalLM(config).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SUBJECTS = {
    "vit": Subject(
        "DINOv2 ViT-S/14, 224 px",
        _vit,
        {"pixel_values": _BATCH},
        ("token-drop:flops=0.653",),
        ratio=1.0,
        seconds=60.0,
    ),
    "decoder": Subject(
        "decoder of Gemma 3 270M's shape",
        _decoder,
        {"input_ids": _TOKENS, "attention_mask": _TOKENS},
        ("token-drop:method=received-attention,flops=0.8",),
        ratio=0.6,
    ),
}
MEMORY_LIMIT = 3.0  # peak over the weights


@dataclass(frozen=True)
class Result:
    """One warm process, and a cold one beside it.

    Attributes:
        stages: seconds of the warm process.
        peak, weights: bytes at its peak above those held before, and of the weights.
        cold: seconds of the cold process, all stages together; 0 where none ran.
    """

    stages: dict[str, float]
    peak: int
    weights: int
    cold: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.stages.values())

    @property
    def memory(self) -> float:
        return self.peak / self.weights


def measure(side: str, subject: Subject, folder: Path, *, warm: bool) -> Result:
    """Compile ``subject`` here and now; ``warm``: after a small model of its kind."""
    torch.manual_seed(0)
    work = _WORK[side]
    if warm:
        work(*subject.make(True), subject.dims, subject.passes, folder / "small.onnx")
    with PeakMemory() as memory:
        model, inputs = subject.make(False)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        stages = work(model, inputs, subject.dims, subject.passes, folder / "model.onnx")
    return Result(stages, memory.bytes, weights)


def _ours(
    model: nn.Module, inputs: dict[str, Tensor], dims: Dims, passes: Sequence[str], path: Path
) -> dict[str, float]:
    started = time.perf_counter()
    # Here, so that a cold process counts what this side imports, and nothing of it counts on the other.
    from tersor.ir.capture import capture
    from tersor.onnx_file import export_checked
    from tersor.passes import pipeline

    program = capture(model, inputs, dims)
    captured = time.perf_counter()
    program, report = pipeline.run(program, passes)
    rewritten = time.perf_counter()
    export_checked(program, path, "portable", report, [dict(program.example_inputs)])
    written = time.perf_counter()
    return {"capture": captured - started, "passes": rewritten - captured, "ONNX": written - rewritten}


def _theirs(
    model: nn.Module, inputs: dict[str, Tensor], dims: Dims, _: Sequence[str], path: Path
) -> dict[str, float]:
    started = time.perf_counter()
    from .exporter import export_untouched

    export_untouched(model, inputs, dims, path)
    return {"export": time.perf_counter() - started}


_WORK = {"tersor": _ours, "exporter": _theirs}


def in_new_processes(side: str, name: str) -> Result:
    """:func:`measure` in a cold process and then in a warm one.

    Raises:
        subprocess.CalledProcessError: one failed; what it said went to our own standard error.
    """
    cold, warm = (_in_new_process(side, name, state) for state in ("cold", "warm"))
    result = replace(warm, cold=cold.seconds)
    _console.print(
        f"{name} {side}: {result.seconds:.1f} s, cold {result.cold:.1f} s, {result.memory:.2f} times the weights"
    )
    return result


def _in_new_process(side: str, name: str, state: str) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.compile", "--child", side, name, state, str(answer)]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=Path(__file__).parents[1])
        return Result(**json.loads(answer.read_text()))


def section(results: dict[str, dict[str, list[Result]]]) -> str:
    """The whole section of the page, from results by model and side."""
    rows, verdicts = [], []
    for name, sides in results.items():
        subject = SUBJECTS[name]
        for side, runs in sides.items():
            # The run whose time is the median, so that its stages add up to it.
            middle = sorted(runs, key=lambda r: r.seconds)[len(runs) // 2]
            rows.append(
                [
                    f"{subject.title}, {side}",
                    _spread([r.seconds for r in runs], ".1f"),
                    ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in middle.stages.items()),
                    _spread([r.cold for r in runs], ".1f"),
                    _spread([r.memory for r in runs], ".2f"),
                ]
            )
        verdicts.append(_verdict(subject, sides["tersor"], sides["exporter"]))
    header = ["model and side", "warm seconds", "stages", "cold seconds", "peak / weights"]
    count = len(next(iter(next(iter(results.values())).values())))
    introduction = _INTRODUCTION.format(runs=count)
    short = f"\nBelow what is asked: {'; '.join(missed(results)) or 'nothing'}."
    return "\n".join([provenance("compile"), "", introduction, "", table(header, rows), "", *verdicts, short])


def missed(results: dict[str, dict[str, list[Result]]]) -> list[str]:
    """What is past a limit of time or memory."""
    found = []
    for name, sides in results.items():
        subject, ours = SUBJECTS[name], sides["tersor"]
        warm, cold = median(r.seconds for r in ours), median(r.cold for r in ours)
        theirs = sides["exporter"]
        values = {
            "of the exporter's time": (warm / median(r.seconds for r in theirs), subject.ratio),
            "of the exporter's time, cold": (cold / median(r.cold for r in theirs), subject.ratio),
            "seconds": (warm, subject.seconds),
            "times the weights": (max(r.memory for r in ours), MEMORY_LIMIT),
        }
        found += [
            f"{subject.title}: {value:.2f} {what} (limit {limit:g})"
            for what, (value, limit) in values.items()
            if limit is not None and value > limit
        ]
    return found


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _verdict(subject: Subject, ours: Sequence[Result], theirs: Sequence[Result]) -> str:
    """Medians against the limits of time, warm and cold; the largest peak against that of memory."""
    warm, cold = median(r.seconds for r in ours), median(r.cold for r in ours)
    seconds = "" if subject.seconds is None else f" {warm:.1f} s (limit {subject.seconds:g});"
    return (
        f"- {subject.title}, `{' '.join(subject.passes)}`:{seconds} "
        f"{warm / median(r.seconds for r in theirs):.2f} of the exporter's time (limit {subject.ratio:g}), "
        f"{cold / median(r.cold for r in theirs):.2f} of it cold, which is held to the same; "
        f"peak at most {max(r.memory for r in ours):.2f} times the weights (limit {MEMORY_LIMIT:g})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.compile", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="processes of each model, side and state")
    parser.add_argument("--model", choices=SUBJECTS, action="append", help="only this one; writes nothing")
    parser.add_argument("--print", action="store_true", help="print the section and write nothing")
    parser.add_argument(
        "--child", nargs=4, metavar=("SIDE", "MODEL", "STATE", "FILE"), help=argparse.SUPPRESS
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 where a stated limit is missed")
    options = parser.parse_args()
    if options.child:
        side, name, state, answer = options.child
        with tempfile.TemporaryDirectory() as folder:
            result = measure(side, SUBJECTS[name], Path(folder), warm=state == "warm")
        Path(answer).write_text(json.dumps(asdict(result)))
        return
    results: dict[str, dict[str, list[Result]]] = {}
    for name in options.model or SUBJECTS:
        SUBJECTS[name].make(False)  # what is unpacked on its first use counts on neither side
        sides = results.setdefault(name, {side: [] for side in _WORK})
        for _ in range(options.runs):
            for side, runs in sides.items():
                runs.append(in_new_processes(side, name))
    text = section(results)
    put_section("compile", text, bool(options.print or options.model))
    check_limits(missed(results), options.check)


if __name__ == "__main__":
    main()
