"""Where a model makes a plain number of a size, which fixes it: ``len(x)``, ``int(n / 2)``, ``math.log(n)``."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.fx.experimental.sym_node import SymNode

from .explain import is_foreign

# How the line of a note begins that says where.
MADE = "a number is made of a size, which fixes it, at "


@contextmanager
def numbers_noted() -> Iterator[list[str]]:
    """Within the block, the list gets ``FILE:LINE (code)`` of the model's lines that make a size a number."""
    places: list[str] = []
    with ExitStack() as stack:
        for made in ("guard_int", "guard_float"):
            if hasattr(SymNode, made):
                stack.enter_context(patch.object(SymNode, made, _noting(getattr(SymNode, made), places)))
        yield places


def explain_numbers(places: Sequence[str]) -> list[str]:
    """One line that says where numbers were made of sizes, and what to write; none where there are no places."""
    how = "with x.shape[0] in place of len(x), and n // 2 in place of int(n / 2), it may vary"
    return [f"{MADE}{' and '.join(places)}: {how}"] if places else []


def _noting(make: Callable[..., Any], places: list[str]) -> Callable[..., Any]:
    def noting(node: Any, *args: Any) -> Any:
        place = _place() if node.expr.free_symbols else ""
        if place and place not in places:
            places.append(place)
        return make(node, *args)

    return noting


def _place() -> str:
    """The innermost line that is neither PyTorch's nor Tersor's; empty where there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if Path(file).is_file() and not is_foreign(file):
            return f"{file}:{frame.f_lineno} ({linecache.getline(file, frame.f_lineno).strip()})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
