"""What a Program costs: floating-point operations, bytes moved and parameters, as expressions in its dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tersor.ir.dialect import dialect_of, traits_of
from tersor.ir.dialect.attention import attention_flops
from tersor.ir.errors import InputError
from tersor.ir.inference import signature
from tersor.ir.layer_path import block_path
from tersor.ir.operands import find_operand
from tersor.ir.program import Program
from tersor.ir.shapes import expression, fake_mode
from tersor.ir.views import is_view

aten = torch.ops.aten
Expr = Any  # sympy ships no types

_OF_A_MODE = "_tersor_flops"

# Operators that read as many elements of their first operand as they return.
_LOOKUPS = {
    aten.embedding.default,
    aten.gather.default,
    aten.index_select.default,
    aten.index.Tensor,
}


@dataclass(frozen=True)
class Machine:
    """Peak rates for the roofline: operations and bytes a second, and seconds spent on every operation started."""

    flops_per_second: float
    bytes_per_second: float
    seconds_per_op: float = 0.0


@dataclass(frozen=True)
class Totals:
    """Cost at given sizes."""

    flops: int
    bytes: int
    parameters: int


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node, or of all nodes of a layer."""

    flops: Expr
    bytes: Expr
    layer: str


@dataclass(frozen=True)
class Cost:
    """Cost of a Program; expressions are in symbols named as its dimensions.

    Attributes:
        flops: twice the multiply-adds of matrix products, convolutions and attention; other operators count as
            none, as in ``torch.utils.flop_counter``.
        bytes: operands read and results written by every operator, weights once, views not at all.
        parameters: elements of floating-point weights.
        by_node: cost of every operator, by node name.
        dims: names of the dimensions that :meth:`at` takes.
    """

    flops: Expr
    bytes: Expr
    parameters: int
    by_node: Mapping[str, NodeCost] = field(repr=False)
    dims: tuple[str, ...] = ()

    def at(self, **sizes: int) -> Totals:
        """The cost at given sizes, such as ``cost.at(batch=1, tokens=257)``.

        Raises:
            InputError: a dimension is missing or unknown.
        """
        number = self._evaluator(sizes)
        return Totals(number(self.flops), number(self.bytes), self.parameters)

    def flops_by_node(self, **sizes: int) -> dict[str, int]:
        """FLOPs of every operator at given sizes, by node name."""
        number = self._evaluator(sizes)
        return {name: number(node.flops) for name, node in self.by_node.items()}

    def seconds(self, machine: Machine, **sizes: int) -> float:
        """Roofline estimate: every operator takes the longer of its arithmetic and its memory traffic."""
        number = self._evaluator(sizes)
        return sum(
            machine.seconds_per_op
            + max(
                number(node.flops) / machine.flops_per_second,
                number(node.bytes) / machine.bytes_per_second,
            )
            for node in self.by_node.values()
        )

    @property
    def by_layer(self) -> dict[str, NodeCost]:
        """Sums by block, such as ``encoder.layer.3``, in graph order."""
        groups: dict[str, list[NodeCost]] = {}
        for node in self.by_node.values():
            groups.setdefault(block_path(node.layer), []).append(node)
        return {
            block: NodeCost(_total(n.flops for n in nodes), _total(n.bytes for n in nodes), block)
            for block, nodes in groups.items()
        }

    def _evaluator(self, sizes: Mapping[str, int]) -> Callable[[Expr], int]:
        unknown = sorted(sizes.keys() - set(self.dims))
        missing = sorted(set(self.dims) - sizes.keys())
        if unknown or missing:
            which = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
            raise InputError(f"cost is a function of ({', '.join(self.dims)}); {which}")
        values = {_symbol(name): sympy.Integer(size) for name, size in sizes.items()}
        known: dict[Expr, int] = {}

        def number(expr: Expr) -> int:
            if expr not in known:
                known[expr] = int(expr.xreplace(values))
            return known[expr]

        return number


def cost(program: Program) -> Cost:
    """The cost of ``program``; call ``program.analysis(cost)`` to have it computed once."""
    counter = _Counter(program)
    by_node = {node.name: counter.node(node) for node in program.graph.nodes if _computes(node)}
    weights = {id(w): w for w in program.weights.values() if w.is_floating_point()}
    flops, moved = _total(n.flops for n in by_node.values()), _total(n.bytes for n in by_node.values())
    dims = set(program.symbols.values()) | {str(s) for s in flops.free_symbols | moved.free_symbols}
    return Cost(flops, moved, sum(w.numel() for w in weights.values()), by_node, tuple(sorted(dims)))


def _computes(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta["val"], Tensor | list | tuple)


class _Counter:
    """Costs nodes one by one; equal calls are counted once, those of Programs that share their sizes too."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.mode = fake_mode(program)
        self.read: set[str] = set()
        # What is counted is in this mode's symbols, and must not outlive them.
        self.counted: dict[Any, Any] = self.mode.__dict__.setdefault(_OF_A_MODE, {})
        self.flops_of: dict[Any, Expr] = {}
        self.bytes_of: dict[Any, Expr] = {}

    def node(self, node: fx.Node) -> NodeCost:
        return NodeCost(self._flops(node), self._bytes(node), node.meta.get("layer") or "")

    def _flops(self, node: fx.Node) -> Expr:
        formula = _formula(node)
        if formula is None:
            return sympy.Integer(0)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        key = (node.target, signature(args), signature(kwargs))
        if key not in self.counted:
            environment = self.mode.shape_env
            assert environment is not None
            with environment.suppress_guards(), self.mode, torch.no_grad():
                self.counted[key] = formula(node, args, kwargs)
        if key not in self.flops_of:
            self.flops_of[key] = self._named(self.counted[key])
        return self.flops_of[key]

    def _bytes(self, node: fx.Node) -> Expr:
        if is_view(node):
            return sympy.Integer(0)
        written = self._size(node.meta["val"])
        read = []
        table = _looked_up(node)
        for operand in node.all_input_nodes:
            if operand is table:
                read.append(written)
            elif operand.op != "get_attr":
                read.append(self._size(operand.meta["val"]))
            elif operand.target not in self.read:
                self.read.add(str(operand.target))
                read.append(self._size(operand.meta["val"]))
        return sympy.Add(written, *read)

    def _size(self, value: Any) -> Expr:
        """Bytes of a tensor or of several."""
        if isinstance(value, list | tuple):
            return sympy.Add(*(self._size(item) for item in value))
        if not isinstance(value, Tensor):
            return sympy.Integer(0)
        key = (tuple(expression(size) for size in value.shape), value.element_size())
        if key not in self.bytes_of:
            sizes = (self._named(size) for size in value.shape)
            self.bytes_of[key] = sympy.Mul(value.element_size(), *sizes)
        return self.bytes_of[key]

    def _named(self, size: Any) -> Expr:
        expr = expression(size)
        names = self.program.symbols
        return expr.xreplace({s: _symbol(names.get(str(s), str(s))) for s in expr.free_symbols})


def _looked_up(node: fx.Node) -> Any:
    """The operand of which only as many elements are read as are returned; None where all of each is."""
    if node.target in _LOOKUPS:
        return node.args[0]
    traits = traits_of(node)
    return find_operand(node, traits.content[0]) if traits.taken else None


def _formula(node: fx.Node) -> Callable[[fx.Node, Any, Any], Any] | None:
    """How to count ``node``; None when it does no matrix product."""
    target = node.target
    op = dialect_of(node)
    if op is not None:
        return lambda _, args, kwargs: op.flops(*args, **kwargs)
    if not isinstance(target, torch._ops.OpOverload):
        return None
    if target.overloadpacket in _FORMULAS:
        return lambda _, args, kwargs: _FORMULAS[target.overloadpacket](*args, **kwargs)
    if target.overloadpacket in flop_registry:
        return lambda node, args, kwargs: flop_registry[target.overloadpacket](
            *args, **kwargs, out_val=node.meta["val"]
        )
    return _count_parts if target._can_decompose() and not is_view(node) else None


def _count_parts(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Count the operators that a composite one consists of."""
    # Without the Python dispatcher some operators (interpolation) refuse symbolic sizes.
    with enable_python_dispatcher(), FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)  # type: ignore[operator]
    return counter.get_total_flops()


def _grouped_product_flops(left: Tensor, right: Tensor, *_: Any, **__: Any) -> Any:
    """Rows of ``left [rows, k]`` times one matrix each of ``right [groups, k, n]``; or a batch of products."""
    rows = left.shape[0] if left.dim() == 2 else left.shape[0] * left.shape[1]
    return 2 * rows * left.shape[-1] * right.shape[-1]


# What torch's registry lacks, or counts on some devices only.
_FORMULAS: dict[Any, Callable[..., Any]] = {
    aten.scaled_dot_product_attention: attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    aten._grouped_mm: _grouped_product_flops,
}


def _symbol(name: str) -> Expr:
    return sympy.Symbol(name, integer=True, positive=True)


def _total(terms: Iterable[Expr]) -> Expr:
    # Layers repeat: adding each distinct term once, times its count, keeps the sum fast.
    return sympy.expand(sympy.Add(*(term * count for term, count in Counter(terms).items())))
