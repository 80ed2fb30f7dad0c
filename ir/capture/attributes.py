"""Python values that a model keeps from call to call: tracing fixes them, so they must not reach a result."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import CaptureError
from .state import Snapshot


def explain_attributes(model: nn.Module, before: Snapshot, call: Callable[[], Any]) -> list[str]:
    """One line for every attribute that each call assigns and no call reads before that.

    An attribute that a second call with the same inputs leaves alone is a cache; what it does to the result at other
    sizes is a matter of the comparison with the model.

    Args:
        before: the attributes before the first call, which has been made.
        call: makes another call with the same inputs.

    Raises:
        CaptureError: a call changes what the call before it left, and reads it first; the message names the line.
    """
    if not before.changed():
        return []
    again = Snapshot(model)
    call()
    places = again.changed()
    if not places:
        return []
    reads: dict[tuple[nn.Module, str], str] = {}
    with _watched(places, reads):
        call()
    notes = []
    for module, name in places:
        owner = f"{before.names[module] or 'the model'} ({type(module).__name__})"
        if (module, name) in reads:
            raise CaptureError(
                f"cannot capture {type(model).__name__}: every call of {owner} changes its attribute {name!r}, and "
                f"reads what the call before left in it at {reads[module, name]}; a Program is a function of its "
                "inputs. Leave the attribute alone in forward, or make the state an input and an output of forward"
            )
        notes.append(f"{owner} assigns its attribute {name!r} at every call; the Program does not")
    return notes


@contextmanager
def _watched(places: list[tuple[nn.Module, str]], reads: dict[tuple[nn.Module, str], str]) -> Iterator[None]:
    """Within the block, ``reads`` gets the line of every read of one of ``places`` that comes before a write."""
    classes = {module: type(module) for module, _ in places}
    for module, kind in classes.items():
        names = {name for owner, name in places if owner is module}
        module.__class__ = _watching(kind, names, reads)
    try:
        yield
    finally:
        for module, kind in classes.items():
            module.__class__ = kind


def _watching(kind: type, names: set[str], reads: dict[tuple[nn.Module, str], str]) -> type:
    def read(self: Any, name: str) -> Any:
        if name in names:
            frame = sys._getframe(1)
            file, line = frame.f_code.co_filename, frame.f_lineno
            reads.setdefault((self, name), f"{file}:{line} ({linecache.getline(file, line).strip()})")
        return super(watching, self).__getattribute__(name)  # type: ignore[misc]

    def write(self: Any, name: str, value: Any) -> None:
        names.discard(name)
        super(watching, self).__setattr__(name, value)  # type: ignore[misc]

    watching = type(kind.__name__, (kind,), {"__getattribute__": read, "__setattr__": write})
    watching.__module__ = kind.__module__
    return watching
