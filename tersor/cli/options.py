"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
Threads = Annotated[
    int | None, typer.Option(metavar="N", help="Threads to run on.", min=1, show_default="all cores")
]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", metavar="NAME=N", help="Size of a dimension, such as tokens=257; may be repeated."
    ),
]
MODEL_HELP = "A Hugging Face folder, a .pt2 archive, timm:NAME@weights.safetensors, or module.path:factory."
Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
Against = Annotated[str, typer.Option("--against", metavar="MODEL", help="The model it was made from.")]
Artifact = Annotated[str, typer.Argument(metavar="OUT", help="A folder that `tersor convert` wrote.")]

_SIZE = re.compile(r"([A-Za-z_]\w*)=([1-9][0-9]{0,8})")


def parse_sizes(given: Sequence[str] | None) -> dict[str, int]:
    """``["batch=1", "tokens=257"]`` as a mapping.

    Raises:
        InputError: one is not of that form.
    """
    from ..ir.errors import InputError

    sizes: dict[str, int] = {}
    for text in given or ():
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise InputError(f"--size {text!r} is not of the form NAME=N, such as tokens=257")
        sizes[match[1]] = int(match[2])
    return sizes
