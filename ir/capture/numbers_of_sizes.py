"""Where a model makes a plain number of a size, which fixes it: ``len(x)``, ``int(n / 2)``, ``math.log(n)``."""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch.fx.experimental.sym_node import SymNode

from .explain import is_foreign

# Lines of the model, as FILE:LINE (code), by the input and the dim of which they make a number.
Made = Mapping[tuple[str, int], list[str]]

# What called the exporter, and what called that, are not the model's.
_CALLER = str(Path(__file__).with_name("export.py"))
_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")


@contextmanager
def numbers_noted() -> Iterator[Made]:
    """Within the block, every line of the model that makes a size a number is noted."""
    made: dict[tuple[str, int], list[str]] = {}
    with ExitStack() as stack:
        for name in ("guard_int", "guard_float"):
            if hasattr(SymNode, name):
                stack.enter_context(patch.object(SymNode, name, _noting(getattr(SymNode, name), made)))
        yield made


def explain_number(made: Made, name: str, dim: int) -> str:
    """Where a number is made of a dim, and what to write in its place; empty where none is known to be."""
    lines = made.get((name, dim))
    if not lines:
        return ""
    how = "where it says len(x) or int(n / 2), x.shape[0] and n // 2 make none"
    return f"a number is made of it at {' and '.join(lines)}; {how}"


def _noting(make: Callable[..., Any], made: dict[tuple[str, int], list[str]]) -> Callable[..., Any]:
    def noting(node: Any, *args: Any) -> Any:
        sources = getattr(node.shape_env, "var_to_sources", {})
        names = [str(source.name) for symbol in node.expr.free_symbols for source in sources.get(symbol, ())]
        sizes = [match for name in names if (match := _SIZE.fullmatch(name))]
        place = _place() if sizes else ""
        for match in sizes if place else ():
            lines = made.setdefault((match[1], int(match[2])), [])
            if place not in lines:
                lines.append(place)
        return make(node, *args)

    return noting


def _place() -> str:
    """The innermost line of the model that is neither PyTorch's nor Tersor's; empty where there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file == _CALLER:
            break
        if Path(file).is_file() and not is_foreign(file):
            return f"{file}:{frame.f_lineno} ({linecache.getline(file, frame.f_lineno).strip()})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
