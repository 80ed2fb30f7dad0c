"""Put kernels in the place of the nodes they stand for, on an edited copy of the Program."""

from __future__ import annotations

import heapq
import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from tersor.ir.program import Program

from .call import Fallback, KernelCall
from .kernels import KERNELS, Kernel


@dataclass(frozen=True)
class Lowered:
    """The Program with kernel calls in its graph; it can be run, and is no longer a Program to rewrite or save.

    Attributes:
        calls: every kernel call placed, in graph order.
        fallbacks: where a kernel does not take what is known of its operands before they have sizes.
    """

    program: Program
    calls: tuple[KernelCall, ...]
    fallbacks: tuple[Fallback, ...]


def lower(program: Program) -> Lowered:
    """Replace what kernels say they stand for by calls of them; everything else stays as it is.

    Where kernels overlap, the one that stands for more nodes goes first.
    """
    edited = program.edit()
    lowering = _Lowering(edited.graph)
    for kernel, node in _places(edited.graph):
        lowering.place(kernel, node)
    _sort(edited.graph)
    edited.graph.lint()
    calls = tuple(n.target for n in edited.graph.nodes if isinstance(n.target, KernelCall))
    return Lowered(edited, calls, tuple(lowering.fallbacks))


def _places(graph: fx.Graph) -> list[tuple[Kernel, fx.Node]]:
    """Every kernel at every node where it matches, those that stand for most nodes first, else in graph order."""
    found = [(k, node, match) for node in graph.nodes for k in KERNELS.values() if (match := k.match(node))]
    found.sort(key=lambda place: len(place[2].covered), reverse=True)
    return [(kernel, node) for kernel, node, _ in found]


class _Lowering:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.fallbacks: list[Fallback] = []
        self._erased: set[fx.Node] = set()

    def place(self, kernel: Kernel, node: fx.Node) -> None:
        """Call ``kernel`` for what it matches at ``node``, if it still does and takes the operands."""
        # Calls that were placed before may have taken nodes or changed operands.
        match = None if node in self._erased else kernel.match(node)
        if match is None or match.is_circular:
            return
        reason = kernel.guard(*fx.map_arg(match.args, _value), **fx.map_arg(dict(match.kwargs), _value))
        if reason is not None:
            self.fallbacks.append(Fallback.at(node, kernel, reason))
            return
        with self.graph.inserting_before(node):
            call = self.graph.call_function(KernelCall(kernel, node), match.args, dict(match.kwargs))
            call.meta = {"val": fx.map_arg(match.results, _value), "layer": node.meta.get("layer", "")}
            if isinstance(match.results, fx.Node):
                match.results.replace_all_uses_with(call)
            else:
                for number, result in enumerate(match.results):
                    if result is not None:
                        self._replace_by_entry(result, call, number)
        for result in match.replaced:
            self._erase_dead(result)

    def _replace_by_entry(self, result: fx.Node, call: fx.Node, number: int) -> None:
        entry = self.graph.call_function(operator.getitem, (call, number))
        entry.meta = {"val": result.meta["val"], "layer": call.meta["layer"]}
        result.replace_all_uses_with(entry)

    def _erase_dead(self, node: fx.Node) -> None:
        """Erase ``node`` if nothing reads it, and then what only it read; inputs stay."""
        pending = [node]
        while pending:
            dead = pending.pop()
            if not dead.users and dead.op != "placeholder" and dead not in self._erased:
                pending.extend(dead.all_input_nodes)
                self._erased.add(dead)
                self.graph.erase_node(dead)


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _sort(graph: fx.Graph) -> None:
    """Put every node after its operands, otherwise in the order they have."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    waiting = {node: len(node.all_input_nodes) for node in graph.nodes}
    nodes = list(graph.nodes)
    ready = [order[node] for node in nodes if waiting[node] == 0]
    heapq.heapify(ready)
    last = nodes[-1]
    while ready:
        node = nodes[heapq.heappop(ready)]
        # Everything moves behind the old end one by one, which leaves the new order.
        if node is not last:
            last.append(node)
        last = node
        for user in node.users:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, order[user])
