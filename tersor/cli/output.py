"""What commands print: results to stdout, as text or as JSON; errors and progress to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..progress import Report


def emit(data: Any, text: RenderableType, as_json: bool) -> None:
    """Print ``data`` when JSON was asked for, else ``text``."""
    if as_json:
        print(json.dumps(data, indent=2, allow_nan=False, default=str))
        return
    console = Console(highlight=False, markup=False, soft_wrap=isinstance(text, str))
    if not console.is_terminal:
        # Tables in files and pipes are as wide as their content.
        console = Console(highlight=False, markup=False, soft_wrap=isinstance(text, str), width=200)
    console.print(text)


def emit_error(message: str, kind: str, code: int, arguments: Sequence[str]) -> int:
    """One line to stderr; where ``--json`` was asked for, an object with the key ``error`` to stdout too."""
    line = " ".join(message.split())
    if "--json" in arguments:
        print(json.dumps({"error": {"kind": kind, "message": line, "exit_code": int(code)}}))
    print(f"error: {line}", file=sys.stderr)
    return int(code)


@contextmanager
def progress_bar() -> Iterator[Report]:
    """A function that shows how far the work has come, on stderr and only where a person sees it."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None)

        def report(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total)

        yield report
