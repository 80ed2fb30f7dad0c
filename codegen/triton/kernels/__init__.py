"""The fused kernels, one file each; importing this package imports triton.

A file that holds a ``KERNEL`` is found by walking the folder, so a new kernel is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from .kernel import Kernel, Variant, interpreting

KERNELS: dict[str, Kernel] = {}

for _module in pkgutil.iter_modules(__path__):
    _kernel = getattr(importlib.import_module(f"{__name__}.{_module.name}"), "KERNEL", None)
    if isinstance(_kernel, Kernel):
        KERNELS[_kernel.name] = _kernel

__all__ = ["KERNELS", "Kernel", "Variant", "interpreting"]
