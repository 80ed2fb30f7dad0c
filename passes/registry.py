"""Passes and methods by name, found by walking the package: a new file is a new pass, no list is edited."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar
from weakref import WeakSet

from tersor.ir.errors import SpecError

from .contract import Method, Pass

_ROOT = __name__.rpartition(".")[0]
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Method)
_unregistered: WeakSet[type] = WeakSet()


def find_passes() -> dict[str, type[Pass]]:
    """Every pass by its name: those of this package, and those that the running program has defined."""
    import_all(_ROOT)
    return named_subclasses(Pass)


def find_methods(base: type[_M]) -> dict[str, type[_M]]:
    """Every method of a family by its name; ``base`` is the abstract class that annotates the slot."""
    package = base.__module__.rpartition(".")[0]
    if package:
        import_all(package)
    return named_subclasses(base)


def unregistered(kind: type[_T]) -> type[_T]:
    """Class decorator: no name finds this pass or method, nor its subclasses, but inside ``registered(kind)``.

    For passes that stand in for real ones, as in tests: whoever lists or searches all passes does not meet them.
    """
    _unregistered.add(kind)
    return kind


@contextmanager
def registered(*kinds: type) -> Iterator[None]:
    """Names find ``kinds``, declared ``unregistered``, and their subclasses for as long as this lasts."""
    hidden = [kind for kind in kinds if kind in _unregistered]
    _unregistered.difference_update(hidden)
    try:
        yield
    finally:
        _unregistered.update(hidden)


@cache
def import_all(package: str) -> None:
    """Import every module below ``package``.

    Raises:
        SpecError: one cannot be imported; the message names its file.
    """
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", ()), package + "."):
        try:
            importlib.import_module(module.name)
        except Exception as error:  # Whatever a new method's file raises.
            spec = module.module_finder.find_spec(module.name, None)
            place = module.name if spec is None or spec.origin is None else spec.origin
            raise SpecError(f"cannot import {place}: {type(error).__name__}: {error}") from error


def named_subclasses(base: type[_T]) -> dict[str, type[_T]]:
    """Concrete subclasses of ``base`` by their ``name``, in alphabetical order.

    Raises:
        SpecError: two classes have one name.
    """
    found: dict[str, type[_T]] = {}
    for kind in _subclasses(base):
        name = kind.__dict__.get("name")
        if name is None or inspect.isabstract(kind) or not _unregistered.isdisjoint(kind.__mro__):
            continue
        twin = found.setdefault(name, kind)
        if twin is not kind:
            both = " and ".join(f"{k.__module__}.{k.__qualname__}" for k in (twin, kind))
            raise SpecError(f"{both} are both called {name!r}: rename one")
    return dict(sorted(found.items()))


def _subclasses(base: type[_T]) -> Iterator[type[_T]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _subclasses(kind)
