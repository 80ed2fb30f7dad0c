"""``tersor convert``: from a model to an artifact."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import (
    DynamicSizes,
    ExampleInputs,
    Imports,
    Json,
    Model,
    Threads,
    Traceback,
    import_modules,
    parse_dynamic,
    read_examples,
)
from .output import emit, progress_bar

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..model import OptimizedModel


class OnViolation(StrEnum):
    """What a pass that breaks its promise leads to."""

    RAISE = "raise"
    REVERT = "revert"


def convert(
    model: Model,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FOLDER", help="The folder to write.")],
    passes: Annotated[
        list[str] | None,
        typer.Option(
            "--pass", "-p", metavar="SPEC", help="A pass to apply, see `tersor passes`; may be repeated."
        ),
    ] = None,
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="What runs the result: onnx, torch or triton.")
    ] = "onnx",
    example_inputs: ExampleInputs = None,
    dynamic: DynamicSizes = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Inputs to measure on: .safetensors or .npz, tensors by input name (NAME, or N:NAME for batch N).",
        ),
    ] = None,
    max_deviation: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="Largest deviation that approximate passes may reach together.", min=0.0
        ),
    ] = None,
    on_violation: Annotated[
        OnViolation,
        typer.Option(
            metavar="raise|revert",
            help="A pass that is refused or breaks its promise: an error, or left out.",
        ),
    ] = OnViolation.RAISE,
    require_speedup: Annotated[
        bool | None,
        typer.Option(
            "--require-speedup/--no-require-speedup",
            help="Leave a pass out whose result is no faster.",
            show_default="on with --calibration",
        ),
    ] = None,
    ops: Annotated[
        str | None, typer.Option(metavar="portable|ort", help="ONNX operators.", show_default="ort")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="How matrices are stored, for onnx: fp32, int8 or another kind that `tersor passes` lists, or auto.",
            show_default="fp32",
        ),
    ] = None,
    threads: Threads = None,
    generator: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also write one ONNX file that generates by itself, with weights of 32 bits; needs -p kv-cache, "
            "guesses with -p speculate (of several drafters by the first that goes by the text alone).",
        ),
    ] = None,
    guess: Annotated[
        bool, typer.Option("--guess/--no-guess", help="Whether the file of --generator guesses.")
    ] = True,
    imports: Imports = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Capture MODEL, apply passes, lower it to a target, and write an artifact that runs."""
    from ..calibration import read_batches
    from ..folders import check_output, check_output_file
    from ..generator_file import drafter_of, guessing_module
    from ..ir.errors import InputError
    from ..lowering import target_with_options
    from ..optimize import optimize_model
    from ..passes.spec import parse_spec

    # All that can be wrong with the command line comes out before the model is read.
    place = check_output(out)
    import_modules(imports)
    instances = [parse_spec(spec) for spec in passes or ()]
    target_with_options(target, {"ops": ops, "weights": weights, "threads": threads})
    generating = None if generator is None else check_output_file(generator)
    if generating is not None and generating.is_relative_to(place):
        raise InputError(
            f"--generator {generator} is in {out}, whose files are the artifact's: give a place beside it"
        )
    if generating is not None and all(instance.family != "cache" for instance in instances):
        raise InputError(f"--generator {generator} needs a model that keeps a cache: add -p kv-cache")
    if generating is None and not guess:
        raise InputError("--no-guess is of the file that --generator names: add that")
    drafter = drafter_of(instances)
    if generating is not None and guess and drafter is not None:
        guessing_module(drafter)
    sizes = parse_dynamic(dynamic)
    examples = read_examples(example_inputs)
    batches = read_batches(calibration) if calibration is not None else None
    with progress_bar() as report:
        fast = optimize_model(
            model,
            instances,
            target,
            example_inputs=examples,
            calibration=batches,
            max_deviation=max_deviation,
            on_violation=on_violation.value,
            require_speedup=require_speedup,
            dynamic=sizes,
            ops=ops,
            weights=weights,
            threads=threads,
            progress=report,
        )
        report(f"writing {out}", len(instances) + 4, len(instances) + 5)
        fast.save(place)
        written = [] if generating is None else fast.export_onnx(generating, generate=True, guess=guess)
    data = {
        "out": str(place),
        "generator": [str(file) for file in written],
        "target": target,
        "calibrated": batches is not None,
        "report": fast.report.to_json(),
    }
    wrote = ", ".join([out, *([] if generator is None else [generator])])
    emit(data, _text(fast, wrote, made_up=examples is None), json)


def _text(fast: OptimizedModel, wrote: str, made_up: bool) -> RenderableType:
    from rich.console import Group

    parts: list[Any] = [fast.report.table()]
    if not fast.manifest.calibrated:
        parts.append(
            f"Measured on {'inputs that Tersor made up' if made_up else 'the example inputs alone'}. For figures that "
            "mean something, and for a check that it got faster, pass --calibration."
        )
    parts.append(f"Wrote {wrote}")
    return Group(*parts)
