"""Examples as long as a table of the model, at which the exporter takes ``table[:n]`` for the table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from ..errors import CaptureError, InputError
from ..program import Program
from .dims import BATCH
from .export import Request, export_program, run_model


def exported(request: Request) -> Iterator[Program]:
    """The Program of ``request``; before it that of an example that is one shorter in sizes which vary for that alone.

    What the first is at the sizes of ``request`` is to be tried; where it does not take them, the next is right.

    Raises:
        CaptureError: as :func:`export_program`.
    """
    program = export_program(request)
    fixed = _fixed(request, program)
    # Of several inputs, what the model does with the others at just this size is in no trial.
    shorter = _shorter(request, fixed) if len(request.inputs) == 1 else None
    if shorter is not None:
        with suppress(CaptureError, InputError):
            run_model(request.model, shorter, request.fixed)
            other = export_program(replace(request, inputs=shorter))
            if freed := fixed - _fixed(request, other):
                note = (
                    f"the example is cut by one in {' and '.join(sorted(freed))}: at its size a table of the model is "
                    "read whole"
                )
                told = [*other.notes.get("capture", ()), note]
                yield replace(other, notes={**other.notes, "capture": told})
    yield program


def _fixed(request: Request, program: Program) -> set[str]:
    """Names of dims that were to vary and are numbers."""
    return {
        name
        for spec in program.inputs
        for dim, name in request.dynamic.get(spec.name, {}).items()
        if isinstance(spec.shape[dim], int)
    }


def _shorter(request: Request, names: set[str]) -> dict[str, Tensor] | None:
    """The inputs with one entry less along the dims of these names; None where that shows nothing."""
    inputs = dict(request.inputs)
    changed = False
    for name, dims in request.dynamic.items():
        for dim, label in dims.items():
            size = inputs[name].shape[dim]
            # A size of two would become one, which is fixed too.
            if label in names and label != BATCH and size > 2:
                inputs[name] = inputs[name].narrow(dim, 0, size - 1).clone()
                changed = True
    return inputs if changed else None
