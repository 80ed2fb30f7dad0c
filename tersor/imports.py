"""Modules of the user's that define passes and methods: imported by name or from a file, and named again later."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .ir.errors import InputError

# A file's module gets a name of its own, so that a file called random.py is not taken for the library's.
_PREFIX = "tersor_import_"


def import_from(place: str) -> ModuleType:
    """Import a module by its dotted name, or a file that ends in ``.py``, once; its passes and methods are found then.

    Raises:
        InputError: there is no such module or file, or running it fails.
    """
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise InputError(f"there is no file {place} to import")
    if not is_file and not all(part.isidentifier() for part in place.split(".")):
        raise InputError(f"cannot import {place!r}: give a module's dotted name, or a file that ends in .py")
    try:
        return _import_file(path.resolve()) if is_file else importlib.import_module(place)
    except (Exception, SystemExit) as error:
        # It is the user's code that runs here, so whatever it raises is about that.
        raise InputError(f"cannot import {place}: {type(error).__name__}: {error}") from error


def module_text(name: str) -> str:
    """What to ask :func:`import_from` for to get the module called ``name`` here; of a file only its own name."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file and (name == "__main__" or name.startswith(_PREFIX)):
        return Path(file).name
    return name


def _import_file(path: Path) -> ModuleType:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        # What a model's own module has imported already must not define its methods a second time.
        if isinstance(file, str) and Path(file) == path and name != "__main__":
            return module
    name = f"{_PREFIX}{path.stem}_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
