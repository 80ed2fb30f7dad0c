"""The code above a value, run on concrete sizes without the rest of the program."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ..program import Program
from ..same_elements import SHAPE_ONLY
from ..shapes import expression
from ._pattern import calls

aten = torch.ops.aten

_LIMIT = 200
# A table of more is one of positions or slopes; fewer may be ids that mean something.
_FEW = 16


class Sizes:
    """One concrete size for every symbol of a program: ``length`` for those of ``spanned``, ``others`` for the rest.

    Attributes:
        uneven: some of the spanned ones, those of ``halved``, are about half as long.
        others: as given.
    """

    def __init__(
        self,
        program: Program,
        length: int,
        spanned: Collection[sympy.Symbol] = (),
        others: int = 2,
        halved: Collection[sympy.Symbol] = (),
    ) -> None:
        long, half = ({str(symbol) for symbol in symbols} for symbols in (spanned, halved))
        self.values = {symbol: length if symbol in long else others for symbol in program.symbols}
        self.values |= dict.fromkeys(half, length // 2 + 1)
        self.uneven, self.others = bool(half), others

    def of(self, size: Any) -> int:
        expr = expression(size)
        return int(expr.xreplace({s: sympy.Integer(self.values[str(s)]) for s in expr.free_symbols}))


@dataclass(frozen=True)
class Cone:
    """The nodes that a value is computed from, in order.

    Attributes:
        nodes: everything to evaluate, the value's own node last.
        inputs: program inputs whose values (not only whose sizes) are read.
        literals: numbers written into the code or held in small tables, rounded either way; and sizes of nothing else.
    """

    program: Program
    nodes: tuple[fx.Node, ...]
    inputs: frozenset[fx.Node]
    literals: frozenset[int]

    @staticmethod
    def above(program: Program, root: fx.Node, stop: fx.Node | None = None) -> Cone | None:
        """The cone of ``root``, cut at ``stop``; None where it is too large to be a mask's or draws random numbers."""
        found: set[fx.Node] = set()
        inputs: set[fx.Node] = set()
        literals: set[int] = set()
        pending = [root]
        while pending:
            node = pending.pop()
            if node in found:
                continue
            found.add(node)
            if len(found) > _LIMIT or _is_random(node):
                return None
            if node is stop or is_size(node):
                continue
            if node.op == "placeholder":
                inputs.add(node)
            literals |= {whole for n in _numbers(program, node) for whole in (math.floor(n), math.ceil(n))}
            operands = list(node.all_input_nodes)
            if calls(node, *SHAPE_ONLY):
                operands = [n for n in operands if n is not node.args[0]]
            pending += operands
        order = {node: i for i, node in enumerate(program.graph.nodes)}
        return Cone(
            program,
            tuple(sorted(found, key=order.__getitem__)),
            frozenset(inputs),
            frozenset(literals),
        )

    def cut_at(self, node: fx.Node | None) -> Cone | None:
        """The same value as a function of ``node`` alone; None where other inputs' values are read too."""
        if node is None:
            return self if not self.inputs else None
        cut = Cone.above(self.program, self.nodes[-1], node)
        return cut if cut is not None and not cut.inputs - {node} and node in cut.nodes else None

    def run(self, sizes: Sizes, given: Mapping[fx.Node, Tensor]) -> Any:
        """The value at ``sizes`` with some nodes' values given; None where the code rejects these sizes."""
        return self.values(sizes, given).get(self.nodes[-1])

    def values(self, sizes: Sizes, given: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Any]:
        """The value of every node, as far as the code goes at these sizes."""
        values: dict[fx.Node, Any] = dict(given)
        try:
            with torch.no_grad():
                for node in self.nodes:
                    if node not in values:
                        values[node] = self._value(node, values, sizes)
        except (RuntimeError, IndexError, ValueError, KeyError):
            pass
        return values

    def _value(self, node: fx.Node, values: Mapping[fx.Node, Any], sizes: Sizes) -> Any:
        if is_size(node):
            return sizes.of(node.meta["val"])
        if node.op == "get_attr":
            return self.program.weights[str(node.target)]

        def operand(n: fx.Node) -> Any:
            if n in values:
                return values[n]
            fake = n.meta["val"]
            return torch.zeros([sizes.of(s) for s in fake.shape], dtype=fake.dtype)

        args, kwargs = fx.map_arg((node.args, node.kwargs), operand)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def _is_random(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _numbers(program: Program, node: fx.Node) -> list[float]:
    """Finite numbers that ``node`` is called with, or holds if it is a weight of no more than a few."""
    found: list[Any] = []
    if node.op == "get_attr":
        weight = program.weights[str(node.target)]
        if weight.numel() <= _FEW and not weight.is_complex() and weight.dtype != torch.bool:
            found = weight.flatten().tolist()
    else:
        fx.node.map_aggregate((node.args, node.kwargs), found.append)
    return [n for n in found if isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)]


def constant(program: Program, value: Any) -> float | None:
    """The number that ``value`` is for every input and size, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, fx.Node):
        return None
    fake = value.meta.get("val")
    if not isinstance(fake, Tensor) or fake.numel() != 1:
        return None
    cone = Cone.above(program, value)
    if cone is None or cone.inputs or any(_varies(node) for node in cone.nodes):
        return None
    # Code that reads the shape of a value only is cut there, and may have counted its entries.
    found = [cone.run(Sizes(program, 2, others=size), {}) for size in (2, 3, 5)]
    numbers = {float(f) for f in found if isinstance(f, Tensor) and f.numel() == 1 and not f.is_complex()}
    return numbers.pop() if len(numbers) == 1 and all(isinstance(f, Tensor) for f in found) else None


def _varies(node: fx.Node) -> bool:
    size = node.meta.get("val")
    return isinstance(size, torch.SymInt) and bool(expression(size).free_symbols)
