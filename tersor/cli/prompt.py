"""The text that a command goes on from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

Prompt = Annotated[str, typer.Argument(help="The text to go on from; - reads it from stdin.")]


def read_prompt(given: str) -> str:
    """The text itself; for ``-`` what stdin holds, whatever the terminal's own encoding is.

    Raises:
        InputError: that is no UTF-8.
    """
    from ..ir.errors import InputError

    if given != "-":
        return given
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the prompt on stdin is no UTF-8 text: byte {error.start} of it is none of one"
        ) from None
