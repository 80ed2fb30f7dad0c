"""Attention written by hand: ``softmax(query @ key^T * scale + bias) @ value``."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch
from torch import fx

from ..builder import Builder
from ..operands import arguments
from ..program import Program
from ..shapes import expression, same_size
from ._pattern import Pattern, WhyNot, calls, heads_differ, sizes, skip_noops
from ._product import weighted_value
from ._score_mask import mask_of, mixes_shallow
from ._scores import Scores, find_scores
from .fold_mask import known_part

aten = torch.ops.aten

_NEARBY = 6


@dataclass(frozen=True)
class HandWritten:
    scores: Scores
    value: fx.Node
    value_order: tuple[int, ...] | None
    result: fx.Node
    result_order: tuple[int, ...] | None
    heads: int | None


class SoftmaxAttention(Pattern[HandWritten]):
    """``softmax(scores, -1) @ value``, the scores being

    - ``q @ k.transpose(-1, -2)`` as ``matmul``, ``bmm``, ``baddbmm`` or ``einsum``, of ``[batch, heads, n, d]`` or
      ``[batch * heads, n, d]`` operands,
    - times or divided by constants, on the product or on the keys,
    - plus any additive terms (masks, ALiBi, relative positions, disentangled products),
    - overwritten by very low numbers through ``masked_fill`` or ``where``,

    with casts, reshapes between the two layouts, and dropout at rest in between.
    """

    name = "softmax attention"

    def __init__(self, program: Program, padded_rows: bool = False) -> None:
        super().__init__(program)
        self._padded_rows = padded_rows

    def anchor(self, node: fx.Node) -> bool:
        return calls(node, aten.softmax.int, aten._softmax.default)

    def match(self, node: fx.Node) -> HandWritten | WhyNot | None:
        rank = len(sizes(node))
        scores = find_scores(self.program, node.args[0])
        if scores is None:
            return _resembles(self.program, node)
        if isinstance(scores, WhyNot):
            return scores
        if int(arguments(node)["dim"]) % rank != rank - 1:
            return WhyNot(node, "the softmax is not over the keys")
        weights = node
        while True:
            if len(weights.users) != 1:
                return WhyNot(weights, "its probabilities are read in more than one place")
            reader = next(iter(weights.users))
            found = weighted_value(reader, weights)
            if found is not None:
                break
            if not _passes_weights(reader):
                return WhyNot(
                    reader, f"its probabilities go through {reader.target} before they meet the values"
                )
            weights = reader
        value, value_order, result_order = found
        return self._checked(HandWritten(scores, value, value_order, reader, result_order, None))

    def _checked(self, found: HandWritten) -> HandWritten | WhyNot:
        product = found.scores.product
        query, key, value = product.left, product.right, found.value
        dtypes = {n.meta["val"].dtype for n in (query, key, value)}
        if len(dtypes) != 1:
            return WhyNot(product.node, f"queries, keys and values have dtypes {sorted(map(str, dtypes))}")
        ranks = {len(sizes(n)) for n in (query, key, value)}
        if ranks == {4}:
            batches = [sizes(n)[0] for n in (query, key, value)]
            if not all(same_size(batches[0], b) for b in batches[1:]):
                return WhyNot(product.node, "queries, keys and values have different batches")
            reason = heads_differ(query, key, value)
            return found if reason is None else WhyNot(product.node, reason)
        if ranks != {3}:
            return WhyNot(product.node, f"queries, keys and values have {sorted(ranks)} dims")
        return HandWritten(
            found.scores, value, found.value_order, found.result, found.result_order, self._heads(found)
        )

    def _heads(self, found: HandWritten) -> int:
        """How many heads share the first dim of three-dim operands; 1 when nothing tells."""
        if found.scores.heads is not None:
            return found.scores.heads
        product = found.scores.product
        for operand in (product.left, product.right, found.value):
            source = _unmerged(operand)
            if source is not None and isinstance(sizes(source)[1], int):
                return int(sizes(source)[1])
        # Rows of the first dim are independent: any whole factor is a valid number of heads.
        factor, _ = expression(sizes(product.left)[0]).as_coeff_Mul()
        return (
            int(factor)
            if isinstance(factor, sympy.Integer) and not expression(sizes(product.left)[0]).is_Integer
            else 1
        )

    def apply(self, node: fx.Node, match: HandWritten) -> WhyNot | None:
        g = self.builder(match.result)
        product = match.scores.product
        query, key = product.query(g), product.key(g)
        value = match.value
        if match.value_order is not None:
            value = g.call(aten.permute.default, value, list(match.value_order))
        if match.heads is not None:
            query, key, value = (_split_heads(g, n, match.heads) for n in (query, key, value))
        mask = mask_of(g, match.scores.terms, match.heads, query.meta["val"].dtype)
        if mask is not None and mixes_shallow(self.program, match.scores.terms):
            lengths = sizes(query)[2], sizes(key)[2]
            if known_part(self.program, mask, *lengths, self._padded_rows) is None:
                return WhyNot(
                    node,
                    "some of its scores are overwritten by numbers that do not absorb what is added to them, and not "
                    "all of what hides keys has a known meaning",
                )
        result = g.op("attention", query, key, value, mask, scale=match.scores.scale)
        if match.heads is not None:
            result = g.call(aten.reshape.default, result, [-1, g.size(query, 2), g.size(value, 3)])
        if match.result_order is not None:
            result = g.call(aten.permute.default, result, list(match.result_order))
        match.result.replace_all_uses_with(result)
        g.program.graph.erase_node(match.result)
        return None


def _resembles(program: Program, node: fx.Node) -> WhyNot | None:
    """WhyNot where a product of the softmax's own shape lies a few operations above it, as in talking heads."""
    reader: dict[fx.Node, fx.Node] = {}
    level = [node]
    for _ in range(_NEARBY):
        above = []
        for inner in level:
            for source in inner.all_input_nodes:
                if source.op == "call_function" and source not in reader:
                    reader[source] = inner
                    above.append(source)
        for found in above:
            if not calls(found, aten.matmul.default, aten.bmm.default, aten.einsum.default):
                continue
            one, two = sizes(found), sizes(node)
            if len(one) == len(two) > 4:
                return WhyNot(
                    found,
                    f"its scores have {len(one)} dims, attention's are [batch, heads, queries, keys]: join what stands "
                    "for the heads into one dim before the product",
                )
            if len(one) == len(two) and all(same_size(a, b) for a, b in zip(one, two, strict=True)):
                blocker = _blocker(program, found, node, reader)
                return WhyNot(
                    blocker,
                    f"between product and softmax lies {blocker.target}, which does more with the scores than scale, "
                    "add to or hide them",
                )
        level = above
    return None


def _blocker(program: Program, product: fx.Node, softmax: fx.Node, reader: dict[fx.Node, fx.Node]) -> fx.Node:
    """The first node on the way from product to softmax that does not hold scores."""
    way = [product]
    while reader[way[-1]] is not softmax:
        way.append(reader[way[-1]])
    for node in way[1:]:
        if not isinstance(find_scores(program, node), Scores):
            return node
    return way[-1]


def _passes_weights(node: fx.Node) -> bool:
    """Whether ``node`` hands probabilities on: casts, copies, dropout at rest, batch and heads joined or split."""
    if skip_noops(node) is not node or calls(node, aten.to, aten._to_copy.default):
        return True
    if not calls(node, aten.reshape.default):
        return False
    before, after = sizes(node.args[0]), sizes(node)  # type: ignore[arg-type]
    same = all(same_size(a, b) for a, b in zip(before[-2:], after[-2:], strict=True))
    return same and {len(before), len(after)} == {3, 4}


def _unmerged(node: fx.Node) -> fx.Node | None:
    """The ``[batch, heads, n, d]`` value that ``node [batch * heads, n, d]`` is a reshape of, or None."""
    node = skip_noops(node)
    if not calls(node, aten.reshape.default):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = sizes(source), sizes(node)
    if len(before) != 4 or len(after) != 3:
        return None
    kept = same_size(before[2], after[1]) and same_size(before[3], after[2])
    return skip_noops(source) if kept and same_size(before[0] * before[1], after[0]) else None


def _split_heads(g: Builder, node: fx.Node, heads: int) -> fx.Node:
    source = _unmerged(node)
    if source is not None and same_size(sizes(source)[1], heads):
        return source
    return g.call(aten.reshape.default, node, [-1, heads, g.size(node, 1), g.size(node, 2)])
