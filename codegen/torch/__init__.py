"""The torch target: the Program's own graph, eager or through ``torch.compile``; the reference of the others."""

from __future__ import annotations

from .executable import TorchExecutable
from .target import TorchTarget

__all__ = ["TorchExecutable", "TorchTarget"]
