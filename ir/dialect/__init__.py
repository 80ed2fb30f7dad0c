"""The dialect: a small set of semantic operators, one file each.

An operator's file holds its schema, its plain-PyTorch reference (the definition of its meaning), its shape
function, its cost and its traits, by which analyses treat it.  Importing this package registers every operator found
in the folder, so a new operator is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from ._op import DIALECT, DialectOp, InPlace, dialect_of, dialect_op, is_dialect, traits_of
from ._traits import Attends, Dim, Layout, Meaning, Role, Traits

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DIALECT",
    "Attends",
    "DialectOp",
    "Dim",
    "InPlace",
    "Layout",
    "Meaning",
    "Role",
    "Traits",
    "dialect_of",
    "dialect_op",
    "is_dialect",
    "traits_of",
]
