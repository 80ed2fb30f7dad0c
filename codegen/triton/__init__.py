"""The Triton target: fused kernels where the graph has their pattern, the torch path everywhere else.

Importing this package does not import triton; lowering a Program does.
"""

from __future__ import annotations

from .call import Fallback
from .target import TritonExecutable, TritonTarget

__all__ = ["Fallback", "TritonExecutable", "TritonTarget"]
