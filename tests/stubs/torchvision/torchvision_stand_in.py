"""Lets timm import on a machine that has no torchvision.

timm imports torchvision at module level for one class (`FrozenBatchNorm2d`) and for image transforms that
Tersor never calls.  The only torchvision on PyPI is a CUDA build; beside a CPU build of torch it fails at import
(`operator torchvision::nms does not exist`) and takes `import transformers` and `import timm` down with it.

A plain folder called `torchvision` on the path would cure timm and break transformers, which asks
`importlib.util.find_spec("torchvision")`, believes what it finds and then imports its torchvision image
processors.  So the stand-in is visible to timm alone: a `.pth` file calls `install()` when Python starts, and
while a module of timm executes, and only then, `torchvision` is in `sys.modules`.  Everyone else is told the
truth: not installed.
"""

from __future__ import annotations

import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from types import ModuleType

_modules: dict[str, ModuleType] = {}
_lock = threading.RLock()
_depth = 0


class _TimmFinder:
    """Finds `timm` and its submodules as usual, and wraps their loaders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "timm" and not name.startswith("timm."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _TimmLoader(spec.loader.name, spec.loader.path)
        return spec


class _TimmLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _visible():
            super().exec_module(module)


@contextmanager
def _visible():
    global _depth
    with _lock:
        if not _modules:
            _modules.update(_build())
        _depth += 1
        sys.modules.update(_modules)
        try:
            yield
        finally:
            _depth -= 1
            if not _depth:
                for name in _modules:
                    sys.modules.pop(name, None)


def install() -> None:
    """Puts the finder first on `sys.meta_path`, once; does nothing beside a real torchvision."""
    if any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        return
    if importlib.machinery.PathFinder.find_spec("torchvision") is None:
        sys.meta_path.insert(0, _TimmFinder())


class _Namespace(ModuleType):
    """A module whose every public name is a class that can be named and subclassed, but not used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        where = f"{self.__name__}.{name}"

        def refuse(self: object, *args: object, **kwargs: object) -> None:
            raise RuntimeError(f"{where} needs the real torchvision, which is not installed here")

        kind = type(name, (), {"__init__": refuse, "__module__": self.__name__})
        setattr(self, name, kind)
        return kind


def _build() -> dict[str, ModuleType]:
    """The module tree.  torch is imported here, not at start-up, so that Python starts as fast as before."""
    import enum

    import torch

    class FrozenBatchNorm2d(torch.nn.Module):
        """Batch norm with fixed statistics and affine parameters, `[n, c, h, w] -> [n, c, h, w]`."""

        def __init__(self, num_features: int, eps: float = 1e-5) -> None:
            super().__init__()
            self.eps = eps
            self.register_buffer("weight", torch.ones(num_features))
            self.register_buffer("bias", torch.zeros(num_features))
            self.register_buffer("running_mean", torch.zeros(num_features))
            self.register_buffer("running_var", torch.ones(num_features))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            shift = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)

    names = {"NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS"}
    modes = enum.Enum("InterpolationMode", {name: name.lower() for name in sorted(names)})

    tree = {"torchvision": _Namespace("torchvision")}
    for child in ("ops", "ops.misc", "transforms", "transforms.functional", "datasets", "utils"):
        module = tree[f"torchvision.{child}"] = _Namespace(f"torchvision.{child}")
        parent, _, leaf = module.__name__.rpartition(".")
        setattr(tree[parent], leaf, module)
    for module in tree.values():
        module.__path__ = []  # type: ignore[attr-defined]
    tree["torchvision.ops.misc"].FrozenBatchNorm2d = FrozenBatchNorm2d  # type: ignore[attr-defined]
    tree["torchvision.transforms.functional"].InterpolationMode = modes  # type: ignore[attr-defined]
    tree["torchvision.transforms"].InterpolationMode = modes  # type: ignore[attr-defined]
    return tree
