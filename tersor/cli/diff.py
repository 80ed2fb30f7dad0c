"""``tersor diff``: what a rewrite changed, or how two models differ."""

from __future__ import annotations

from typing import Annotated

import typer

from .exit_codes import ExitCode
from .options import DynamicSizes, ExampleInputs, Json, Traceback, parse_dynamic, read_examples
from .output import emit, progress_bar

_Side = Annotated[
    str, typer.Argument(help="An artifact, a saved Program, or a model as for `tersor convert`.")
]


def diff(
    a: _Side,
    b: _Side,
    context: Annotated[int, typer.Option(metavar="N", help="Lines around a change.", min=0)] = 3,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 when they differ.")] = False,
    example_inputs: ExampleInputs = None,
    dynamic: DynamicSizes = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Show how the Programs of A and B differ, as a unified diff of their texts."""
    from ..ir.diff import diff as program_diff
    from ..sources import read_program

    examples, free = read_examples(example_inputs), parse_dynamic(dynamic)
    with progress_bar() as report:
        report(f"reading {a}", 0, 3)
        before = read_program(a, examples, free)
        report(f"reading {b}", 1, 3)
        after = read_program(b, examples, free)
        report("comparing", 2, 3)
        text = program_diff(before, after, context)
    emit({"equal": not text, "diff": text}, text.rstrip("\n") or "no difference", json)
    if text and exit_code:
        raise typer.Exit(ExitCode.FAILED)
