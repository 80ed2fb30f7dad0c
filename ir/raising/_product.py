"""Ways to write ``query @ key^T`` and ``weights @ value``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..builder import Builder
from ..operands import arguments
from ..program import Program
from ._cone import constant
from ._pattern import calls, sizes, skip_noops

aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """Operands of a batched product, and the permutations that bring them to ``[..., rows, features]``.

    ``right_order`` brings the right operand to ``[..., columns, features]``; None keeps an operand as it is.
    """

    node: fx.Node
    left: fx.Node
    right: fx.Node
    left_order: tuple[int, ...] | None = None
    right_order: tuple[int, ...] | None = None

    def query(self, g: Builder) -> fx.Node:
        return _permuted(g, self.left, self.left_order)

    def key(self, g: Builder) -> fx.Node:
        return _permuted(g, self.right, self.right_order)


@dataclass(frozen=True)
class Leaf:
    product: Product
    scale: float = 1.0
    bias: fx.Node | None = None
    bias_factor: float = 1.0


def product_of(program: Program, node: fx.Node) -> Leaf | None:
    """``node`` as a product over the last dim of both operands, batched over one or two leading dims."""
    if calls(node, aten.matmul.default, aten.bmm.default):
        left, right = node.args[:2]
        return _leaf(program, node, left, right)
    if calls(node, aten.baddbmm.default):
        values = arguments(node)
        leaf = _leaf(program, node, values["batch1"], values["batch2"])
        if leaf is None:
            return None
        bias = None if values["beta"] == 0 else values["self"]
        return Leaf(leaf.product, leaf.scale * float(values["alpha"]), bias, float(values["beta"]))
    if calls(node, aten.einsum.default):
        product = _einsum_scores(node)
        return None if product is None else Leaf(product)
    return None


def _leaf(program: Program, node: fx.Node, left: Any, right: Any) -> Leaf | None:
    if len(sizes(left)) not in (3, 4) or len(sizes(left)) != len(sizes(right)):
        return None
    # A constant factor on the transposed keys is a scale, and keeps the transposition behind it visible.
    scale = 1.0
    right = skip_noops(right)
    while calls(right, aten.mul.Tensor, aten.div.Tensor):
        factor = constant(program, right.args[1])
        if factor is None or factor <= 0:
            break
        scale = scale * factor if calls(right, aten.mul.Tensor) else scale / factor
        right = skip_noops(right.args[0])
    return Leaf(_transposed(node, left, right), scale)


def _transposed(node: fx.Node, left: fx.Node, right: fx.Node) -> Product:
    """The product with its right operand behind the last transposition, where there is one."""
    rank = len(sizes(right))
    if calls(right, aten.transpose.int) and {int(d) % rank for d in right.args[1:3]} == {rank - 2, rank - 1}:  # type: ignore[arg-type]
        return Product(node, left, right.args[0])  # type: ignore[arg-type]
    if calls(right, aten.permute.default):
        order = [int(d) % rank for d in right.args[1]]  # type: ignore[union-attr,arg-type]
        order[-1], order[-2] = order[-2], order[-1]
        source = right.args[0]
        assert isinstance(source, fx.Node)
        return Product(node, left, source, None, None if order == list(range(rank)) else tuple(order))
    return Product(node, left, right, None, (*range(rank - 2), rank - 1, rank - 2))


def weighted_value(
    node: fx.Node, weights: fx.Node
) -> tuple[fx.Node, tuple[int, ...] | None, tuple[int, ...] | None] | None:
    """``weights @ value``: the value, the permutation to ``[..., keys, features]`` and that of the result."""
    if calls(node, aten.matmul.default, aten.bmm.default) and node.args[0] is weights:
        value = node.args[1]
        assert isinstance(value, fx.Node)
        return (value, None, None) if len(sizes(value)) == len(sizes(weights)) else None
    if calls(node, aten.einsum.default):
        return _einsum_value(node, weights)
    return None


def _letters(node: fx.Node) -> tuple[str, str, str, fx.Node, fx.Node] | None:
    equation, operands = node.args[:2]
    inputs, arrow, output = str(equation).replace(" ", "").partition("->")
    parts = inputs.split(",")
    if not arrow or len(parts) != 2 or "." in inputs or not isinstance(operands, list | tuple):
        return None
    left, right = operands
    return parts[0], parts[1], output, left, right  # type: ignore[return-value]


def _einsum_scores(node: fx.Node) -> Product | None:
    found = _letters(node)
    if found is None:
        return None
    one, two, out, first, second = found
    if out and out[-1] in one and out[-1] not in two:
        one, two, first, second = two, one, second, first
    summed = (set(one) & set(two)) - set(out)
    if len(out) not in (3, 4) or len(summed) != 1 or out[-2] in two or out[-1] in one:
        return None
    feature = summed.pop()
    return Product(
        node, first, second, _order(one, out[:-1] + feature), _order(two, out[:-2] + out[-1] + feature)
    )


def _einsum_value(
    node: fx.Node, weights: fx.Node
) -> tuple[fx.Node, tuple[int, ...] | None, tuple[int, ...] | None] | None:
    found = _letters(node)
    if found is None:
        return None
    one, two, out, first, second = found
    if second is weights:
        one, two, first, second = two, one, second, first
    if first is not weights or len(one) not in (3, 4) or len(two) != len(one):
        return None
    lead, row, column = one[:-2], one[-2], one[-1]
    feature = set(two) - set(one)
    if len(feature) != 1 or column in out or set(two) != {*lead, column, *feature}:
        return None
    wide = feature.pop()
    return second, _order(two, lead + column + wide), _order(lead + row + wide, out)


def _order(given: str, wanted: str) -> tuple[int, ...] | None:
    """The permutation from ``given`` to ``wanted``; None for the identity."""
    return None if given == wanted else tuple(given.index(letter) for letter in wanted)


def _permuted(g: Builder, node: fx.Node, order: tuple[int, ...] | None) -> fx.Node:
    return node if order is None else g.call(aten.permute.default, node, list(order))
