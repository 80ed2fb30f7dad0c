"""Every kind by its name, found by walking this folder: a new file is a new kind."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from functools import cache

from tersor.ir.errors import InputError

from .kind import Kind


@cache
def kinds() -> dict[str, Kind]:
    """All kinds but fp32, which stores weights as they are."""
    found: dict[str, Kind] = {}
    package = importlib.import_module(__name__.rpartition(".")[0])
    for file in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{file.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Kind) and not inspect.isabstract(value):
                name = getattr(value, "name", None)
                if name is not None:
                    found[name] = value()
    return found


def find_kind(name: str) -> Kind | None:
    """The kind called ``name``; None for fp32.

    Raises:
        InputError: there is none, or it is to be settled by measurements first.
    """
    if name == "fp32":
        return None
    if name not in kinds():
        known = ", ".join(("fp32", *sorted(kinds()), "auto"))
        hint = "is settled by optimize_model, which measures" if name == "auto" else f"is none of {known}"
        raise InputError(f"weights={name!r} {hint}")
    return kinds()[name]


def check_operators(ops: str, names: Iterable[str]) -> None:
    """Raise InputError where standard operators alone do not read what one of these kinds stores."""
    for name in sorted(names):
        kind = find_kind(name)
        if ops == "portable" and kind is not None and not kind.portable:
            raise InputError(
                f"weights={name!r} takes operators of ONNX Runtime's own, and ops='portable' rules them out: leave ops "
                "at 'ort', or store weights as fp16 or bf16"
            )
