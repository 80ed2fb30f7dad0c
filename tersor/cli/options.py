"""Options and arguments that several commands share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from ..ir.capture.frontend import Dynamic

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="Threads to run on.", min=1, max=1024, show_default="all cores"),
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
ExampleInputs = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Inputs to capture MODEL with, where it does not say what it takes: a file as for --calibration.",
        show_default="made up",
    ),
]
DynamicSizes = Annotated[
    list[str] | None,
    typer.Option(
        "--dynamic",
        metavar="auto|none|INPUT:DIM=NAME,...",
        help="Sizes of MODEL's inputs that may vary: as the model allows, none, or those named, such as "
        "input_ids:0=batch,1=tokens; may be repeated, one input each. An archive or an artifact has its own.",
        show_default="auto",
    ),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A module, or a .py file, that defines passes or methods of your own; may be repeated.",
    ),
]

_DYNAMIC = ("auto", "none")
_DIM = re.compile(r"([0-9]{1,2})=([A-Za-z_]\w*)")
_SIZE = re.compile(r"([A-Za-z_]\w*)=([1-9][0-9]{0,8})")


def import_modules(given: Sequence[str] | None) -> None:
    """Import what defines passes and methods, before any spec is parsed.

    Raises:
        InputError: something is not there, or running it fails.
    """
    from ..imports import import_from

    for place in given or ():
        import_from(place)


def read_examples(file: str | None) -> dict[str, Tensor] | None:
    """The first batch of a file of inputs; None where no file was named.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    from ..calibration import read_batches

    return None if file is None else read_batches(file)[0]


def parse_dynamic(given: Sequence[str] | None) -> Dynamic:
    """``["input_ids:0=batch,1=tokens"]`` as ``capture`` takes it; ``"auto"`` where nothing was given.

    Raises:
        InputError: one is not of that form, or an input or dim is given twice.
    """
    from ..ir.errors import InputError
    from ..passes.spec import nearest

    if not given or list(given) == ["auto"]:
        return "auto"
    if list(given) == ["none"]:
        return {}
    named: dict[str, dict[int, str]] = {}
    for text in given:
        name, colon, dims = text.rpartition(":")
        if not colon:
            alone = (
                " stands alone"
                if text in _DYNAMIC
                else f" is none of INPUT:DIM=NAME{nearest(text, _DYNAMIC)}"
            )
            raise InputError(f"--dynamic {text!r}{alone}")
        pairs = [_DIM.fullmatch(part.strip()) for part in dims.split(",")]
        if not name or None in pairs:
            raise InputError(
                f"--dynamic {text!r} is not of the form INPUT:DIM=NAME,..., such as input_ids:0=batch,1=tokens"
            )
        if name in named:
            raise InputError(f"--dynamic names input {name!r} twice: join its dims by commas")
        named[name] = {int(pair[1]): pair[2] for pair in pairs if pair}
        if len(named[name]) != len(pairs):
            raise InputError(f"--dynamic {text!r} names a dim twice")
    return named


def parse_sizes(given: Sequence[str] | None) -> dict[str, int]:
    """``["batch=1", "tokens=257"]`` as a mapping.

    Raises:
        InputError: one is not of that form, or a dimension is given twice.
    """
    from ..ir.errors import InputError

    sizes: dict[str, int] = {}
    for text in given or ():
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise InputError(f"--size {text!r} is not of the form NAME=N, such as tokens=257")
        if match[1] in sizes:
            raise InputError(f"--size {match[1]} is given twice")
        sizes[match[1]] = int(match[2])
    return sizes


def check_sizes(sizes: Mapping[str, int], ranges: Mapping[str, tuple[int, int | None]]) -> None:
    """Raise InputError unless a model whose dimensions have ``ranges`` takes ``sizes``."""
    from ..ir.errors import InputError
    from ..passes.spec import nearest

    for name, size in sizes.items():
        if name not in ranges:
            raise InputError(f"the model has no dimension {name!r}{nearest(name, ranges)}")
        low, high = ranges[name]
        if size < low or (high is not None and size > high):
            raise InputError(
                f"--size {name}={size}: the model takes {low} to {'any' if high is None else high}"
            )
