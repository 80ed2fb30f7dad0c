"""Complex numbers as pairs of real ones, as rotary embeddings are written where pairs of channels turn together.

No other part of Tersor has to know of them then, and no target has to have them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..builder import Builder
from ..operands import argument
from ..program import Program
from ..same_elements import COPIES

aten = torch.ops.aten
_Rule = Callable[["_Pairs", fx.Node], fx.Node]
_RULES: dict[Any, _Rule] = {}


class _Unknown(Exception):
    """Something else is done with complex numbers."""


def pair_complex_numbers(program: Program) -> Program:
    """``program`` with ``[..., 2]`` real and imaginary parts in the place of complex values.

    A Program that does more with such values than turn, move and take apart comes back as it is.
    """
    if not any(_is_complex(node) for node in program.graph.nodes):
        return program
    edited = program.edit()
    pairs = _Pairs(edited)
    try:
        for node in list(edited.graph.nodes):
            pairs.rewrite(node)
    except _Unknown:
        return program
    return edited.finished()


class _Pairs:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.of: dict[fx.Node, fx.Node] = {}
        self.g = Builder(program, program.output_node)

    def rewrite(self, node: fx.Node) -> None:
        reads = [n for n in node.all_input_nodes if n in self.of]
        if not reads and not _is_complex(node):
            return
        self.g = Builder(self.program, node.next, str(node.meta.get("layer", "")))
        if node.op == "get_attr":
            weight = self.program.weights[str(node.target)]
            self.of[node] = self.g.weight(
                f"{node.target}_pairs", torch.view_as_real(weight.resolve_conj()).clone()
            )
            return
        if node.target is aten.sym_size.int:
            return
        rule = _RULES.get(getattr(node.target, "overloadpacket", None))
        if rule is None:
            raise _Unknown
        result = rule(self, node)
        if _is_complex(node):
            self.of[node] = result
        else:
            node.replace_all_uses_with(result)

    def part(self, node: Any, which: int) -> fx.Node:
        return self.g.call(aten.select.int, self.of[node], -1, which)

    def joined(self, real: fx.Node, imaginary: fx.Node) -> fx.Node:
        return self.g.call(aten.stack.default, [real, imaginary], -1)


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()


def _rank(node: Any) -> int:
    return int(node.meta["val"].dim())


def _rule(*packets: Any) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(packets, function))
        return function

    return register


@_rule(aten.view_as_complex)
def _view_as_complex(pairs: _Pairs, node: fx.Node) -> fx.Node:
    return node.args[0]  # type: ignore[return-value]


@_rule(aten.view_as_real, aten.resolve_conj, *COPIES)
def _same(pairs: _Pairs, node: fx.Node) -> fx.Node:
    before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype  # type: ignore[union-attr]
    if after not in (before, before.to_real()):
        raise _Unknown
    if node.target.overloadpacket is not aten.view_as_real and not _is_complex(node):  # type: ignore[union-attr]
        return pairs.part(node.args[0], 0)
    return pairs.of[node.args[0]]  # type: ignore[index]


@_rule(aten.real, aten.imag)
def _taken_apart(pairs: _Pairs, node: fx.Node) -> fx.Node:
    return pairs.part(node.args[0], int(node.target.overloadpacket is aten.imag))  # type: ignore[union-attr]


@_rule(aten.complex)
def _complex(pairs: _Pairs, node: fx.Node) -> fx.Node:
    return pairs.joined(node.args[0], node.args[1])  # type: ignore[arg-type]


@_rule(aten.polar)
def _polar(pairs: _Pairs, node: fx.Node) -> fx.Node:
    length, angle = node.args
    g = pairs.g
    parts = (g.call(function, angle) for function in (aten.cos.default, aten.sin.default))
    return pairs.joined(*(g.call(aten.mul.Tensor, length, part) for part in parts))


@_rule(aten._conj, aten.conj_physical)
def _conjugate(pairs: _Pairs, node: fx.Node) -> fx.Node:
    source = node.args[0]
    return pairs.joined(pairs.part(source, 0), pairs.g.call(aten.neg.default, pairs.part(source, 1)))


@_rule(aten.mul)
def _product(pairs: _Pairs, node: fx.Node) -> fx.Node:
    g = pairs.g
    left, right = node.args
    if left not in pairs.of:
        left, right = right, left
    if right not in pairs.of:
        if isinstance(right, complex):
            raise _Unknown
        factor = g.call(aten.unsqueeze.default, right, -1) if isinstance(right, fx.Node) else right
        return g.call(aten.mul.Tensor, pairs.of[left], factor)  # type: ignore[index]
    a, b, c, d = (pairs.part(operand, which) for operand in (left, right) for which in (0, 1))

    def times(one: fx.Node, other: fx.Node) -> fx.Node:
        return g.call(aten.mul.Tensor, one, other)

    return pairs.joined(
        g.call(aten.sub.Tensor, times(a, c), times(b, d)), g.call(aten.add.Tensor, times(a, d), times(b, c))
    )


@_rule(aten.reshape, aten.expand)
def _shaped(pairs: _Pairs, node: fx.Node) -> fx.Node:
    return pairs.g.call(node.target, pairs.of[node.args[0]], [*argument(node, 1), 2])  # type: ignore[index]


@_rule(aten.unsqueeze)
def _unsqueezed(pairs: _Pairs, node: fx.Node) -> fx.Node:
    return pairs.g.call(node.target, pairs.of[node.args[0]], int(node.args[1]) % _rank(node))  # type: ignore[index,arg-type]


@_rule(aten.slice, aten.select, aten.index_select)
def _taken(pairs: _Pairs, node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    dim = int(argument(node, 1, 0)) % _rank(source)
    named = {name: value for name, value in node.kwargs.items() if name != "dim"}
    return pairs.g.call(node.target, pairs.of[source], dim, *node.args[2:], **named)


@_rule(aten.stack, aten.cat)
def _put_together(pairs: _Pairs, node: fx.Node) -> fx.Node:
    values: Any = node.args[0]
    if any(value not in pairs.of for value in values):
        raise _Unknown
    dim = int(argument(node, 1, 0)) % _rank(node)
    return pairs.g.call(node.target, [pairs.of[value] for value in values], dim)


@_rule(aten.squeeze)
def _squeezed(pairs: _Pairs, node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    if not isinstance(argument(node, 1), int):
        raise _Unknown
    return pairs.g.call(node.target, pairs.of[source], int(node.args[1]) % _rank(source))  # type: ignore[arg-type]


@_rule(aten.index)
def _looked_up(pairs: _Pairs, node: fx.Node) -> fx.Node:
    return pairs.g.call(node.target, pairs.of[node.args[0]], node.args[1])  # type: ignore[index]


@_rule(aten.transpose)
def _transposed(pairs: _Pairs, node: fx.Node) -> fx.Node:
    one, other = (int(d) % _rank(node) for d in node.args[1:3])  # type: ignore[arg-type]
    return pairs.g.call(node.target, pairs.of[node.args[0]], one, other)  # type: ignore[index]


@_rule(aten.permute)
def _permuted(pairs: _Pairs, node: fx.Node) -> fx.Node:
    dims = [int(d) % _rank(node) for d in node.args[1]]  # type: ignore[union-attr,arg-type]
    return pairs.g.call(node.target, pairs.of[node.args[0]], [*dims, len(dims)])  # type: ignore[index]
