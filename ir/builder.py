"""Insert nodes into a Program's graph with their shapes inferred on the spot."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from .dialect import DIALECT
from .inference import inference_of
from .program import Program
from .shapes import fake_mode

aten = torch.ops.aten


class Builder:
    """Writes new nodes at one place of a graph; every new node knows its shape and the layer it belongs to."""

    def __init__(self, program: Program, before: fx.Node, layer: str = "") -> None:
        self.program = program
        self.before = before
        self.layer = layer
        self._mode = fake_mode(program)
        self._infer = inference_of(self._mode)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Call any operator, such as ``torch.ops.aten.add.Tensor``."""
        with self.program.graph.inserting_before(self.before):
            node = self.program.graph.call_function(target, args, kwargs)
        node.meta["layer"] = self.layer
        node.meta["val"] = self._infer(node)
        return node

    def op(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Call a dialect operator by its name."""
        return self.call(DIALECT[name].overload, *args, **kwargs)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """Result ``index`` of a node that returns several."""
        return self.call(operator.getitem, node, index)

    def weight(self, name: str, tensor: Tensor) -> fx.Node:
        """A new constant of the program; ``name`` gets a suffix when it is taken."""
        unique, number = name, 0
        while unique in self.program.weights:
            number += 1
            unique = f"{name}_{number}"
        self.program.weights[unique] = tensor
        with self.program.graph.inserting_before(self.before):
            node = self.program.graph.get_attr(unique)
        node.meta["layer"] = self.layer
        with self._mode:
            node.meta["val"] = torch.empty(tuple(tensor.shape), dtype=tensor.dtype)
        return node

    def size(self, node: fx.Node, dim: int) -> int | fx.Node:
        """The size of a dim: the int itself where it is fixed, else a node."""
        size = node.meta["val"].shape[dim]
        return self.call(aten.sym_size.int, node, dim) if isinstance(size, torch.SymInt) else int(size)

    def add(self, left: fx.Node, right: fx.Node | float) -> fx.Node:
        return self.call(aten.add.Tensor, left, right)

    def mul(self, left: fx.Node, right: fx.Node | float) -> fx.Node:
        return self.call(aten.mul.Tensor, left, right)

    def at_least(self, node: fx.Node, least: float) -> fx.Node:
        # Shapes of `clamp` take far longer to infer.
        return self.call(aten.clamp_min.default, node, least)

    def mean(self, node: fx.Node, dims: Sequence[int]) -> fx.Node:
        return self.call(aten.mean.dim, node, list(dims))

    @contextmanager
    def at(self, before: fx.Node) -> Iterator[Builder]:
        """Write before another node for a while."""
        previous, self.before = self.before, before
        try:
            yield self
        finally:
            self.before = previous
