"""Our own lowerings, grouped by kind; importing this package fills the table."""

from __future__ import annotations

import importlib
import pkgutil

from ..registry import LOWERINGS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["LOWERINGS"]
