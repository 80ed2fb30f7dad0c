"""What a raising pattern is, and the helpers that read nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import fx

from ..builder import Builder
from ..operands import arguments
from ..program import Program
from ..same_elements import COPIES
from ..shapes import same_size

aten = torch.ops.aten


@dataclass(frozen=True)
class WhyNot:
    """Code that looks like the pattern and is not raised: the node that stands in the way, and the reason."""

    node: fx.Node
    reason: str


M = TypeVar("M")


class Pattern(ABC, Generic[M]):
    """One idiom in one Program.  Its docstring shows the code it matches; ``match`` proves it or says why not."""

    name: ClassVar[str]

    def __init__(self, program: Program) -> None:
        self.program = program

    @abstractmethod
    def anchor(self, node: fx.Node) -> bool:
        """Whether ``node`` is the kind of node that the idiom is built around; cheap."""

    @abstractmethod
    def match(self, node: fx.Node) -> M | WhyNot | None:
        """The operands found around ``node``; None where the code is something else altogether."""

    @abstractmethod
    def apply(self, node: fx.Node, match: M) -> WhyNot | None:
        """Rewrite what was matched, or say why not; nodes left without users are removed by the driver."""

    def builder(self, before: fx.Node) -> Builder:
        return Builder(self.program, before, before.meta.get("layer", ""))


def calls(node: Any, *targets: Any) -> bool:
    """Whether ``node`` is a call of one of ``targets`` (overloads, or packets for all their overloads)."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    return node.target in targets or getattr(node.target, "overloadpacket", None) in targets


def sizes(node: fx.Node) -> torch.Size:
    """The (symbolic) shape of a node's value."""
    return node.meta["val"].shape  # type: ignore[no-any-return]


def where(node: fx.Node) -> str:
    """A node with its layer, for messages."""
    layer = node.meta.get("layer")
    return f"{node.name} in {layer}" if layer else node.name


def skip_noops(node: fx.Node) -> fx.Node:
    """The value behind slices that keep everything, casts to the same dtype, copies and dropout at rest."""
    while _keeps_everything(node):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _keeps_everything(node: fx.Node) -> bool:
    if not calls(node, *COPIES, aten.slice, aten.expand, aten.reshape, aten.dropout):
        return False
    source, value = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    if not isinstance(source, torch.Tensor) or not isinstance(value, torch.Tensor):
        return False
    if calls(node, aten.dropout.default) and arguments(node)["train"] and arguments(node)["p"] > 0:
        return False
    same = len(source.shape) == len(value.shape) and source.dtype == value.dtype
    return same and all(same_size(a, b) for a, b in zip(source.shape, value.shape, strict=True))


def heads_differ(query: fx.Node, key: fx.Node, value: fx.Node) -> str | None:
    """Why operands ``[..., heads, tokens, head_dim]`` are none of attention: queries share keys in equal groups."""
    queries, keys, values = (sizes(node)[-3] for node in (query, key, value))
    if not same_size(keys, values):
        return f"there are {keys} heads of keys and {values} of values"
    if isinstance(queries, int) and isinstance(keys, int) and queries % keys:
        return f"{queries} heads of queries share {keys} of keys"
    return None
