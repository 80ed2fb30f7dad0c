"""The mask operand that says what terms do to scores: applied in their order, as if every score were zero.

Where a key stays visible to a query, it is all the same how others are hidden.  Where finite numbers hide them all, the
softmax is over those numbers: what hides by less, or was overwritten last, counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import fx

from ..builder import Builder
from ..program import Program
from ..shapes import expression
from ._cone import Cone, Sizes
from ._pattern import calls, sizes
from ._scores import LOW, Bias

aten = torch.ops.aten

# Sums of scores and numbers this low are those numbers, as scores are no more than some tens.
_DEEP = -1e8
_PRODUCTS = (
    aten.linear,
    aten.matmul,
    aten.bmm,
    aten.mm,
    aten.addmm,
    aten.baddbmm,
    aten.einsum,
    aten.embedding,
    aten.convolution,
    aten.softmax,
)
# Biases of distance are read up to such a length, those of rows for as many; or past larger numbers in their code.
_FAR, _FARTHEST = 1025, 4100
# As many tokens as rows are told apart at.
_SHORT = 9


@dataclass(frozen=True)
class _Step:
    """Terms that are added, or that overwrite scores with one and the same number ``low``."""

    terms: tuple[Bias, ...]
    low: float | None

    @property
    def finite(self) -> bool:
        return self.low is not None and self.low > float("-inf")


def mixes_shallow(program: Program, terms: Sequence[Bias]) -> bool:
    """Whether scores are overwritten by numbers that do not absorb them, and other terms hide, or may hide, keys too.

    No mask that is added says what such scores are where nothing is visible.
    """
    steps = list(_steps(terms))
    shallow = [step for step in steps if step.finite and float(step.low or 0.0) > _DEEP]
    others = [s for s in steps if s.low is not None or any(may_hide(program, t.node) for t in s.terms)]
    return bool(shallow) and len(others) > 1


def mask_of(g: Builder, terms: Sequence[Bias], heads: int | None, dtype: torch.dtype) -> fx.Node | None:
    """One mask operand for all the terms: bool where nothing is added and -inf hides, additive otherwise."""
    steps = list(_steps(terms))
    if all(step.low == float("-inf") for step in steps):
        return _visible(g, terms, heads) if terms else None
    alone = len([s for s in steps if s.low is not None]) == 1 and not any(
        may_hide(g.program, term.node) for step in steps if step.low is None for term in step.terms
    )
    mask: fx.Node | None = None
    for step in steps:
        if step.low is None:
            for term in step.terms:
                node = _spread(g, term, heads)
                part = node if term.factor == 1 else g.mul(node, term.factor)
                mask = part if mask is None else g.add(mask, part)
            continue
        # What overwrites a score hides all of it; added to one, only a number this low does.
        low = float(torch.finfo(dtype).min / 4) if step.finite and alone else step.low
        mask = _overwritten(g, mask, _visible(g, step.terms, heads), low, dtype)
    return mask


def may_hide(program: Program, node: fx.Node) -> bool:
    """Whether what is added may hide keys: it is made of inputs without products, or of numbers that low.

    Products of queries and keys, and tables of parameters, are biases.
    """
    cone = Cone.above(program, node)
    if cone is None or any(calls(inner, *_PRODUCTS) for inner in cone.nodes):
        return False
    if cone.inputs:
        return True
    symbols = {symbol for size in sizes(node)[-2:] for symbol in expression(size).free_symbols}
    numbers = [abs(n) for n in cone.literals if _FAR // 2 < abs(n) < -LOW]
    far = max([_FAR, *(2 * n + 3 for n in numbers)])
    if far > _FARTHEST:
        return True
    names = {program.symbols.get(str(symbol), "") for symbol in symbols}
    highs = [program.ranges.get(name, (1, None))[1] for name in names]
    longest = min([far, *(high for high in highs if high is not None)])
    # Many rows and many tokens at once would take gigabytes.
    trials = [
        Sizes(program, 3, symbols, others=3),
        Sizes(program, min(longest, _SHORT), symbols, others=_FAR),
        Sizes(program, min(longest, 16 * _SHORT), symbols, others=_SHORT),
        Sizes(program, longest, symbols, others=1),
    ]
    for trial in trials:
        value = cone.run(trial, {})
        if not isinstance(value, torch.Tensor) or value.is_complex() or bool((value <= LOW).any()):
            return True
    return False


def _steps(terms: Sequence[Bias]) -> Iterator[_Step]:
    for low, some in groupby(terms, lambda term: None if term.low is None else float(term.low)):
        yield _Step(tuple(some), low)


def _visible(g: Builder, terms: Sequence[Bias], heads: int | None) -> fx.Node:
    visible: fx.Node | None = None
    for term in terms:
        node = _spread(g, term, heads)
        seen = g.call(aten.logical_not.default, node) if term.hidden else node
        visible = seen if visible is None else g.call(aten.bitwise_and.Tensor, visible, seen)
    assert visible is not None
    return visible


def _overwritten(
    g: Builder, mask: fx.Node | None, visible: fx.Node, low: float | None, dtype: torch.dtype
) -> fx.Node:
    if mask is not None:
        return g.call(aten.where.ScalarOther, visible, mask, low)
    if low == float("-inf"):
        return g.call(aten.to.dtype, g.call(aten.where.Scalar, visible, 0.0, low), dtype)
    hidden = g.call(aten.logical_not.default, visible)
    return g.call(aten.mul.Tensor, g.call(aten.to.dtype, hidden, dtype), low)


def _spread(g: Builder, term: Bias, heads: int | None) -> fx.Node:
    """A term of three-dim scores as one of ``[batch, heads, queries, keys]``."""
    node = term.node
    if term.rank == 4 or heads is None or len(sizes(node)) < 3:
        return node
    first = sizes(node)[0]
    if isinstance(first, int) and first == 1:
        return g.call(aten.unsqueeze.default, node, 0)
    rest = [g.size(node, 1), g.size(node, 2)]
    return g.call(aten.reshape.default, node, [-1, heads, *rest])
