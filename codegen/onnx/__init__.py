"""The ONNX target: direct lowering of Programs, files for any engine, sessions in ONNX Runtime."""

from __future__ import annotations

from .checks import assert_dynamic, check_model
from .executable import OnnxExecutable
from .export import build, export
from .registry import lowers
from .target import OnnxTarget

__all__ = [
    "OnnxExecutable",
    "OnnxTarget",
    "assert_dynamic",
    "build",
    "check_model",
    "export",
    "lowers",
]
