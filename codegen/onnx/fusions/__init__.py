"""Forms for several operators at once, found at the last of them: one file each.

What the operators before it were lowered to is left without a reader, and goes.  Importing this package fills the
table.
"""

from __future__ import annotations

import importlib
import pkgutil

from .registry import FUSIONS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["FUSIONS"]
