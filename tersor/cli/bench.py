"""``tersor bench``: an artifact against the model it was made from, in alternation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .exit_codes import ExitCode
from .options import Against, Artifact, Json, Sizes, Threads, Traceback, check_sizes, parse_sizes
from .output import emit, emit_error, progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..ir.program import Program
    from ..model import OptimizedModel

# Of models with a cache.
_WHOLE_ROWS = "of one pass over whole rows; the ratio says nothing of how fast it generates"


def bench(
    out: Artifact,
    against: Against,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="What runs MODEL without passes.", show_default="the artifact's target"
        ),
    ] = None,
    size: Sizes = None,
    pairs: Annotated[int, typer.Option(metavar="N", help="Pairs of runs to time.", min=1)] = 15,
    at_most: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="Exit with 1 when the latency ratio is above this.", min=0.0),
    ] = None,
    threads: Threads = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Time OUT and MODEL in alternation on the artifact's inputs, and print the ratio with its spread.

    Of a model with a cache that is one pass over whole rows, and not how fast it generates.
    """
    import torch

    from ..model import load
    from ..runtime.machine import machine_facts
    from ..runtime.paired import time_pair

    sizes = parse_sizes(size)
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as report:
        report(f"reading {out}", 0, 4)
        fast = load(out, threads=threads) if _takes_threads(out) else load(out)
        report(f"capturing {against}", 1, 4)
        source = _capture(out, against, fast)
        report("lowering the model without passes", 2, 4)
        plain = _lower(source, baseline, fast, threads)
        inputs = _inputs(fast, sizes)
        report(f"timing {pairs} pairs", 3, 4)
        timing = time_pair(lambda: plain.run(inputs), lambda: fast.session.run(inputs), pairs=pairs)
    flops = _flops(source, fast, inputs)
    data: dict[str, Any] = {
        "timing": timing.to_json(),
        "baseline": baseline or fast.target,
        "target": fast.target,
        "inputs": {name: list(value.shape) for name, value in inputs.items()},
        "flops": flops,
        "machine": machine_facts(),
        "notes": [] if fast.program.stepping is None else [_WHOLE_ROWS],
    }
    emit(data, _text(data, str(timing)), json)
    if at_most is not None and timing.ratio > at_most:
        emit_error(f"the ratio {timing.ratio:.3f} is above {at_most:g}", "Benchmark", ExitCode.FAILED, [])
        raise typer.Exit(ExitCode.FAILED)


def _takes_threads(out: str) -> bool:
    import inspect

    from ..codegen.target import find_target
    from ..manifest import read_manifest

    return "threads" in inspect.signature(find_target(read_manifest(Path(out)).target).lower).parameters


def _capture(out: str, against: str, fast: OptimizedModel) -> Program:
    from ..certificate import read_certificate
    from ..ir.archive import weights_hash
    from ..ir.errors import InputError
    from ..verification import capture_like, other_model

    source = capture_like(against, fast.program)
    recorded = read_certificate(Path(out))["model"]
    if weights_hash(source.weights) != recorded["weights_sha256"]:
        why = other_model(source, fast.program, recorded.get("family"))
        raise InputError(f"{against} is not the model that {out} was made from: {why}")
    return source


def _lower(source: Program, baseline: str | None, fast: OptimizedModel, threads: int | None) -> Any:
    """MODEL without passes, its weights as they are, with the artifact's other options where it is the same target."""
    import inspect

    from ..codegen.target import find_target
    from ..lowering import lower
    from ..passes import pipeline

    name = baseline or fast.target
    options = dict(fast.manifest.options) if name == fast.target else {}
    options = {key: value for key, value in options.items() if key not in ("weights", "weight_kinds")}
    if threads is not None and "threads" in inspect.signature(find_target(name).lower).parameters:
        options["threads"] = threads
    cleaned, _ = pipeline.run(source, [], calibration=fast.samples[:1])
    return lower(cleaned, name, options)


def _inputs(fast: OptimizedModel, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The artifact's first batch, or its example at the sizes that were asked for."""
    from ..ir.capture.dims import example_at

    if not sizes:
        return fast.samples[0]
    check_sizes(sizes, fast.manifest.ranges)
    _check_memory(fast, sizes)
    return fast.session.bind(example_at(fast.program, sizes))


def _check_memory(fast: OptimizedModel, sizes: Mapping[str, int]) -> None:
    """Raise InputError where the inputs alone would fill this machine: the system ends who tries, without a word."""
    import os
    from math import prod

    from ..ir.errors import InputError

    at = {**fast.program.sizes(), **sizes}
    taken = [
        prod(size if isinstance(size, int) else at[size] for size in spec.shape) * spec.dtype.itemsize
        for spec in fast.inputs
    ]
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * sum(taken) > there:
        wanted = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"--size {wanted}: the inputs alone take {sum(taken) / 1e9:.0f} GB, and this machine has "
            f"{there / 1e9:.0f} GB"
        )


def _flops(
    source: Program, fast: OptimizedModel, inputs: Mapping[str, Tensor]
) -> dict[str, int | float] | None:
    """What the cost analysis says of both at these sizes; None where a size depends on data."""
    from ..ir.analyses.cost import cost

    sizes = source.sizes(inputs)
    costs = [program.analysis(cost) for program in (source, fast.program)]
    if any(set(c.dims) - sizes.keys() for c in costs):
        return None
    before, after = (c.at(**{dim: sizes[dim] for dim in c.dims}).flops for c in costs)
    return {"before": before, "after": after, "ratio": round(after / max(before, 1), 4)}


def _text(data: dict[str, Any], timing: str) -> str:
    machine = data["machine"]
    shapes = ", ".join(f"{name} {shape}" for name, shape in data["inputs"].items())
    lines = [f"latency  {timing}"]
    if data["flops"] is not None:
        lines.append(
            f"FLOPs    {data['flops']['before']:,} -> {data['flops']['after']:,}, ratio {data['flops']['ratio']:.3f}"
        )
    lines.append(f"inputs   {shapes}")
    lines.append(f"on       {data['baseline']} before, {data['target']} after")
    lines.append(
        f"machine  {machine['processor']}, {machine['cores']} cores, {machine['read_bandwidth_gb_s']} GB/s, "
        f"{' '.join(machine['instruction_sets'])}"
    )
    lines += [f"note     {note}" for note in data["notes"]]
    return "\n".join(lines)
