"""Tersor: a compiler that makes transformer models faster, and measures what each rewrite kept.

fast = tersor.optimize_model(model, passes=["token-drop:flops=0.65"], target="onnx", calibration=batches)
fast(**inputs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ir.capture import capture
    from .ir.errors import (
        ArtifactError,
        CaptureError,
        InputError,
        LoweringError,
        PromiseError,
        RefusedError,
        SpecError,
        TersorError,
        VerifierError,
    )
    from .ir.program import Program
    from .model import OptimizedModel, load
    from .optimize import optimize_model

__version__ = "0.1.0"
__all__ = [
    "ArtifactError",
    "CaptureError",
    "InputError",
    "LoweringError",
    "OptimizedModel",
    "Program",
    "PromiseError",
    "RefusedError",
    "SpecError",
    "TersorError",
    "VerifierError",
    "capture",
    "load",
    "optimize_model",
]

# Resolved at first use: `tersor --help`, and every import of a part such as `tersor.ir`, passes through this file
# and should not wait for torch.
_HOMES = {
    "capture": ".ir.capture",
    "Program": ".ir.program",
    "OptimizedModel": ".model",
    "load": ".model",
    "optimize_model": ".optimize",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, ".ir.errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
