"""From the input of a softmax up to the product of queries and keys, collecting what happens on the way."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from ..operands import argument, arguments
from ..program import Program
from ._cone import constant
from ._pattern import WhyNot, calls, sizes, skip_noops
from ._product import Product, product_of

aten = torch.ops.aten

_DEPTH = 24
# Added to a logit, or in its place, a number this low leaves a probability of exactly zero.
LOW = -1e4


@dataclass(frozen=True)
class Bias:
    """An additive term times ``factor``, or (``hidden``) a bool mask of logits that are overwritten by ``low``.

    ``rank`` is the rank of the logits it applies to: 3 where batch and heads are one dim.
    """

    node: fx.Node
    rank: int
    factor: float = 1.0
    hidden: bool = False
    visible: bool = False
    low: float | None = None


@dataclass(frozen=True)
class Scores:
    """``scale * query @ key^T`` and the terms applied to it, innermost first."""

    product: Product
    scale: float = 1.0
    terms: tuple[Bias, ...] = field(default_factory=tuple)
    heads: int | None = None

    def scaled(self, factor: float) -> Scores:
        terms = tuple(
            replace(t, factor=t.factor * factor) if t.low is None else replace(t, low=t.low * factor)
            for t in self.terms
        )
        return replace(self, scale=self.scale * factor, terms=terms)

    def with_term(self, term: Bias) -> Scores:
        return replace(self, terms=(*self.terms, term))


def find_scores(program: Program, node: Any, depth: int = 0) -> Scores | WhyNot | None:
    """The scores that ``node`` holds; None where it holds none, WhyNot where something on the way is not understood."""
    if not isinstance(node, fx.Node) or depth > _DEPTH:
        return None
    node = skip_noops(node)
    if depth == 0:
        node = _unshifted(node)
    leaf = product_of(program, node)
    if leaf is not None:
        scores = Scores(leaf.product, leaf.scale)
        return scores.with_term(Bias(leaf.bias, 3, leaf.bias_factor)) if leaf.bias is not None else scores
    rank = len(sizes(node)) if isinstance(node.meta.get("val"), torch.Tensor) else 0
    if calls(node, aten.to, aten._to_copy.default):
        return find_scores(program, node.args[0], depth + 1)
    if calls(node, aten.mul, aten.div):
        return _scaled(program, node, depth)
    if calls(node, aten.add.Tensor, aten.sub.Tensor):
        return _summed(program, node, rank, depth)
    if calls(node, aten.masked_fill):
        inner, mask, low = node.args[:3]
        return _overwritten(program, inner, Bias(mask, rank, hidden=True), low, depth)
    if calls(node, aten.where):
        return _selected(program, node, rank, depth)
    if calls(node, aten.reshape.default):
        return _reshaped(program, node, rank, depth)
    return None


def _unshifted(node: fx.Node) -> fx.Node:
    """``x`` of ``x - x.amax(-1, keepdim=True)``, which softmax does by itself."""
    if not calls(node, aten.sub.Tensor) or arguments(node)["alpha"] != 1:
        return node
    scores, largest = (skip_noops(n) if isinstance(n, fx.Node) else n for n in node.args[:2])
    if calls(largest, operator.getitem) and largest.args[1] == 0:
        largest = largest.args[0]
    if not calls(largest, aten.amax.default, aten.max.dim) or skip_noops(largest.args[0]) is not scores:
        return node
    dims, kept = argument(largest, 1), argument(largest, 2)
    rank = len(sizes(scores))
    over_keys = [d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])] == [rank - 1]
    return scores if kept and over_keys else node


def _scaled(program: Program, node: fx.Node, depth: int) -> Scores | WhyNot | None:
    left, right = node.args[:2]
    scores = find_scores(program, left, depth + 1)
    other = right
    if not isinstance(scores, Scores) and calls(node, aten.mul):
        scores, other = find_scores(program, right, depth + 1), left
    if not isinstance(scores, Scores):
        return scores
    factor = constant(program, other)
    if factor is None or factor <= 0:
        return WhyNot(node, "the scores are scaled by a value that is no positive constant")
    scaled = scores.scaled(factor if calls(node, aten.mul) else 1 / factor)
    if any(term.low is not None and term.low > LOW for term in scaled.terms):
        return WhyNot(node, "masked scores are scaled to a value that does not hide them")
    return scaled


def _summed(program: Program, node: fx.Node, rank: int, depth: int) -> Scores | WhyNot | None:
    left, right = node.args[:2]
    factor = float(arguments(node)["alpha"])
    subtracted = calls(node, aten.sub.Tensor)
    # Disentangled attention adds products to products; the plain one is the first that was written.
    for inner, other in ((left, right), (right, left)):
        scores = find_scores(program, inner, depth + 1)
        if isinstance(scores, WhyNot):
            return scores
        if not isinstance(scores, Scores):
            continue
        if inner is right and (subtracted or factor != 1):
            return WhyNot(node, "the scores are subtracted, or added several times")
        if isinstance(other, fx.Node):
            return scores.with_term(Bias(other, rank, -factor if subtracted else factor))
        return scores
    return None


def _overwritten(program: Program, inner: Any, mask: Bias, value: Any, depth: int) -> Scores | WhyNot | None:
    scores = find_scores(program, inner, depth + 1)
    if not isinstance(scores, Scores):
        return scores
    low = constant(program, value)
    if low is None or low > LOW:
        return WhyNot(mask.node, "masked scores get a value that does not hide them")
    return scores.with_term(replace(mask, low=low))


def _selected(program: Program, node: fx.Node, rank: int, depth: int) -> Scores | WhyNot | None:
    condition, chosen, otherwise = node.args[:3]
    if not isinstance(condition, fx.Node):
        return None
    scores = _overwritten(program, chosen, Bias(condition, rank, visible=True), otherwise, depth)
    if scores is not None:
        return scores
    return _overwritten(program, otherwise, Bias(condition, rank, hidden=True), chosen, depth)


def _reshaped(program: Program, node: fx.Node, rank: int, depth: int) -> Scores | WhyNot | None:
    """Splitting and joining batch and heads; other reshapes of scores are not understood."""
    scores = find_scores(program, node.args[0], depth + 1)
    if not isinstance(scores, Scores):
        return scores
    before = len(sizes(node.args[0]))  # type: ignore[arg-type]
    if {before, rank} != {3, 4}:
        return WhyNot(node, f"the scores are reshaped from {before} to {rank} dims")
    heads = sizes(node)[1] if rank == 4 else sizes(node.args[0])[1]  # type: ignore[arg-type]
    return replace(scores, heads=heads) if isinstance(heads, int) else WhyNot(node, "heads are not fixed")
