"""Sizes of one: the exporter takes every size that varies for two or more and writes no guard against less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..errors import CaptureError
from ..program import Program
from .check import compare_with_model
from .dims import BATCH, example_at


def refuse_wrong_single_sizes(program: Program, model: Callable[..., Any]) -> Program:
    """``program`` with ranges from two on for the dims at whose size of one it is not what the model is.

    Such a model branches on that size (``if n == 1``), and the other side was traced.  A wrong batch of one is an
    error of :func:`compare_with_model`, which asks for one.  A size that the model itself rejects shows nothing.
    """
    ranges, notes = dict(program.ranges), list(program.notes.get("capture", ()))
    sizes = program.sizes()
    for name in dict.fromkeys(program.symbols.values()):
        low, high = ranges.get(name, (1, None))
        if name == BATCH or name not in sizes or low > 1:
            continue
        single = example_at(program, sizes | {name: 1})
        try:
            expected = model(**single)
        except (RuntimeError, ValueError, IndexError):
            continue
        try:
            # Without symbols no other size is asked for.
            compare_with_model(replace(program, example_inputs=single, symbols={}), expected, lambda: None)
        except CaptureError:
            ranges[name] = (2, high)
            notes.append(
                f"{name} is 2 or more: the model does something else at 1, which was not traced; capture it with "
                f"dynamic={{}} at 1 for that"
            )
    if ranges == program.ranges:
        return program
    return replace(program, ranges=ranges, notes={**program.notes, "capture": notes})
