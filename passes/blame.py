"""Whose fault a failing pass is: Tersor's, or that of code which the user brought along."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersor.ir.errors import InputError, TersorError, VerifierError

from .contract import Method, Pass
from .spec import Spec

_PACKAGE = __name__.partition(".")[0]


def outside_kinds(instance: Pass) -> list[type[Pass] | type[Method]]:
    """The classes of the pass and of the methods in its slots that are defined outside Tersor."""
    kinds = [type(instance), *map(type, instance.methods.values())]
    return [kind for kind in kinds if kind.__module__.partition(".")[0] != _PACKAGE]


@contextmanager
def blame(instance: Pass) -> Iterator[None]:
    """Within it, what goes wrong names the pass, or the part of it that is not Tersor's.

    Raises:
        InputError: a pass or method from outside Tersor failed, or what it gave cannot be used.
        VerifierError: one of Tersor's own made a malformed Program.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TersorError) and not isinstance(error, VerifierError):
            raise
        outside = outside_kinds(instance)
        if outside:
            raise InputError(_text(outside, error)) from error
        if isinstance(error, VerifierError):
            raise VerifierError(f"{Spec.of(instance)} made a malformed program: {error}") from error
        raise


def _text(kinds: list[type[Pass] | type[Method]], error: Exception) -> str:
    what = error if isinstance(error, VerifierError) else f"{type(error).__name__}: {error}"
    told = " ".join(str(what).split())
    for kind in kinds:
        if place := _place(kind, error):
            return f"{_title(kind)} fails at {place}: {told}"
    return f"what {' or '.join(map(_title, kinds))} gave cannot be used: {told}"


def _title(kind: type[Pass] | type[Method]) -> str:
    what = "pass" if issubclass(kind, Pass) else "method"
    return f"your {what} {getattr(kind, 'name', kind.__name__)!r}"


def _place(kind: type, error: Exception) -> str:
    """The last line of the file that defines ``kind`` that the error passed through; empty where there is none."""
    try:
        file = inspect.getfile(kind)
    except (OSError, TypeError):  # typed at a prompt
        return ""
    passed = [
        f"{Path(file).name}:{frame.lineno}, in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return passed[-1] if passed else ""
