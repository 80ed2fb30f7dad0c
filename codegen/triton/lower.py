"""Put kernels in the place of the nodes they stand for, on an edited copy of the Program."""

from __future__ import annotations

import heapq
import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from tersor.ir.dialect import is_dialect
from tersor.ir.operands import arguments
from tersor.ir.program import Program

from .call import Fallback, KernelCall
from .kernels import KERNELS, Kernel
from .patterns import Norm, find_norm


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
    """Replace dialect operators and patterns by kernel calls; everything else stays as it is."""
    edited = program.edit()
    lowering = _Lowering(edited)
    lowering.fuse_gathers()
    lowering.replace_operators()
    _sort(edited.graph)
    edited.graph.lint()
    calls = tuple(n.target for n in edited.graph.nodes if isinstance(n.target, KernelCall))
    return Lowered(edited, calls, tuple(lowering.fallbacks))


class _Lowering:
    def __init__(self, program: Program) -> None:
        self.graph = program.graph
        self.fallbacks: list[Fallback] = []
        self._erased: set[fx.Node] = set()

    def replace_operators(self) -> None:
        """Kernels that stand for one dialect operator."""
        by_op = {kernel.op: kernel for kernel in KERNELS.values() if kernel.op is not None}
        for node in list(self.graph.nodes):
            kernel = by_op.get(node.target._opname) if is_dialect(node) else None
            if kernel is not None and self._accepts(kernel, node, node.args, node.kwargs):
                node.target = KernelCall(kernel, node)

    def fuse_gathers(self) -> None:
        """``select_tokens`` -> ``gather_tokens`` on dim 1 -> norm, with either end absent."""
        gathers = [node for node in self.graph.nodes if _gathers_rows(node)]
        norms = {gather: find_norm(gather) for gather in gathers}
        fused_selects: set[fx.Node] = set()
        # A selection goes with one gather: rather with one whose norm it can take along.
        for gather in sorted(gathers, key=lambda g: norms[g] is None):
            norm, index = norms[gather], _operand(gather, 1)
            select = None
            if is_dialect(index, "select_tokens") and index not in fused_selects:
                operands = [_operand(gather, 0), *((norm.weight, norm.bias) if norm else ())]
                select = None if _depends(operands, index) else index
            if (norm is not None or select is not None) and self._fuse(gather, select, norm) and select:
                fused_selects.add(select)

    def _fuse(self, gather: fx.Node, select: fx.Node | None, norm: Norm | None) -> bool:
        kernel = KERNELS["select_gather_norm"]
        x, index = _operand(gather, 0), _operand(gather, 1)
        options: dict[str, Any] = {"gather": True}
        operands: tuple[Any, ...] = (None, None, index)
        if select is not None:
            given = arguments(select)
            operands = (given["scores"], given["padding"], None)
            options |= {name: given[name] for name in ("keep_per_mille", "prefix", "last")}
        if norm is not None:
            operands += (norm.weight, norm.bias)
            options |= {
                "norm": norm.kind,
                "epsilon": norm.epsilon,
                "norm_dtype": norm.result.meta["val"].dtype,
            }
        if not self._accepts(kernel, gather, (x, *operands), options):
            return False
        with self.graph.inserting_before(gather):
            fused = self.graph.call_function(KernelCall(kernel, gather), (x, *operands), options)
            parts = [self.graph.call_function(operator.getitem, (fused, i)) for i in range(3)]
        values = [index.meta["val"], gather.meta["val"], norm.result.meta["val"] if norm else None]
        fused.meta = {"val": tuple(values), "layer": gather.meta.get("layer", "")}
        for part, value in zip(parts, values, strict=True):
            part.meta = {"val": value, "layer": fused.meta["layer"]}
        if norm is not None:
            norm.result.replace_all_uses_with(parts[2])
            self._erase_dead(norm.result)
        if select is not None:
            select.replace_all_uses_with(parts[0])
        fused.update_kwarg("gather", bool(gather.users))
        gather.replace_all_uses_with(parts[1])
        for node in (gather, select, *parts):
            if node is not None:
                self._erase_dead(node)
        return True

    def _erase_dead(self, node: fx.Node) -> None:
        """Erase ``node`` if nothing reads it, and then what only it read; inputs stay."""
        pending = [node]
        while pending:
            dead = pending.pop()
            if not dead.users and dead.op != "placeholder" and dead not in self._erased:
                pending.extend(dead.all_input_nodes)
                self._erased.add(dead)
                self.graph.erase_node(dead)

    def _accepts(self, kernel: Kernel, node: fx.Node, args: Any, kwargs: Any) -> bool:
        reason = kernel.guard(*fx.map_arg(args, _value), **fx.map_arg(kwargs, _value))
        if reason is not None:
            self.fallbacks.append(Fallback.at(node, kernel, reason))
        return reason is None


def _gathers_rows(node: fx.Node) -> bool:
    """Whether ``node`` gathers tokens that are rows of channels; positions and masks are gathered by torch."""
    if not is_dialect(node, "gather_tokens") or node.args[2] != 1:
        return False
    value = node.meta["val"]
    return value.dim() == 3 and value.dtype.is_floating_point  # type: ignore[no-any-return]


def _operand(node: fx.Node, number: int) -> fx.Node:
    """A tensor operand; the dialect's schema makes it one."""
    return node.args[number]  # type: ignore[return-value]


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _depends(nodes: list[Any], on: fx.Node) -> bool:
    """Whether any of ``nodes`` is computed from ``on``."""
    seen: set[fx.Node] = set()
    pending = [node for node in nodes if isinstance(node, fx.Node)]
    while pending:
        node = pending.pop()
        if node is on:
            return True
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return False


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
