"""One use of a kernel in a lowered graph, and what is known when the kernel was not used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from .kernels import Kernel


@dataclass(frozen=True)
class Fallback:
    """A place where the reference operator runs instead of a kernel.

    Attributes:
        kernel: the kernel that would have run.
        node, layer: where in the Program.
        reason: what the kernel does not take.
    """

    kernel: str
    node: str
    layer: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.node} in {self.layer}" if self.layer else self.node
        return f"{where}: the reference runs instead of the {self.kernel} kernel: {self.reason}"

    @staticmethod
    def at(node: fx.Node, kernel: Kernel, reason: str) -> Fallback:
        return Fallback(kernel.name, node.name, node.meta.get("layer", ""), reason)


class KernelCall:
    """What a lowered node calls: the kernel where its guard agrees, else the reference, which is then reported."""

    def __init__(self, kernel: Kernel, node: fx.Node) -> None:
        self.kernel = kernel
        self.fallbacks: dict[str, Fallback] = {}
        self._node = node
        # FX writes a graph as Python source and names every function it calls by these two.
        self.__name__ = f"{kernel.name}_at_{node.name}"
        self.__module__ = __name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reason = self.kernel.guard(*args, **kwargs)
        if reason is None:
            return self.kernel.launch(*args, **kwargs)
        self.fallbacks.setdefault(reason, Fallback.at(self._node, self.kernel, reason))
        return self.kernel.reference(*args, **kwargs)
