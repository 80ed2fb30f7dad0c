"""Positions that turn some of the tokens only, as ones that turn them all: those that stayed by nothing.

Rotary embeddings (Su et al. 2021) of image models leave class tokens and registers as they are: tokens are cut in two,
``part * cos + turned(part) * sin`` is computed of the one, and both are joined.  With rows of ``1`` and ``0`` in the
tables the same is computed of all tokens at once; nothing is cut or copied, and every token has its row of the tables,
which goes with it where others are dropped.  Equal where tokens that stay are finite, but for the sign of zero.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from tersor.ir.builder import Builder
from tersor.ir.operands import TO_THE_END, argument
from tersor.ir.shapes import same_shape, same_size

from .equivalence import Cheaper, Equivalence
from .layout import packet

aten = torch.ops.aten

_SPLITS = (aten.split_with_sizes, aten.split, aten.chunk)
# What may lie between a part and its turned self.
_LONGEST = 16


@dataclass(frozen=True)
class TurnedParts(Equivalence):
    """Turn all tokens by their positions where some are turned and joined to the others."""

    name: ClassVar[str] = "turned-parts"

    def equal_to(self, node: fx.Node) -> Cheaper | None:
        if node.target is not aten.cat.default:
            return None
        parts: Any = node.args[0]
        dim = _positive(argument(node, 1, 0), node)
        turned = [_turned(part, dim) for part in parts]
        if sum(found is not None for found in turned) != 1:
            return None
        spans = [
            _span(part if found is None else found.part, dim)
            for part, found in zip(parts, turned, strict=True)
        ]
        whole = _joined(spans, dim)
        found = next(found for found in turned if found is not None)
        others = [part for part, own in zip(parts, turned, strict=True) if own is None]
        if whole is None or not found.fits(others, node):
            return None
        return lambda g: found.of_all(g, whole, parts)


@dataclass(frozen=True)
class _Span:
    """Entries ``start`` to ``stop`` of ``source``; None for its end."""

    source: fx.Node
    start: int
    stop: int | None


@dataclass(frozen=True)
class _Turned:
    """``part * by + chain(part) * across``.

    Attributes:
        result: what it is the value of.
        chain: the nodes between the part and what ``across`` is multiplied with, in order, that last.
        dim: the dim of the part that holds tokens.
    """

    result: fx.Node
    part: fx.Node
    by: fx.Node
    across: fx.Node
    chain: tuple[fx.Node, ...]
    dim: int

    def fits(self, others: Sequence[fx.Node], joined: fx.Node) -> bool:
        """Whether tables can be given rows for ``others``."""
        shape = self.part.meta["val"].shape
        tokens = shape[self.dim]
        sizes = [part.meta["val"].shape[self.dim] for part in others]
        tables = [(table, self._row_dim(table)) for table in (self.by, self.across)]
        return (
            all(isinstance(size, int) for size in sizes)
            and all(same_shape(node.meta["val"].shape, shape) for node in (self.chain[-1], self.result))
            and joined.meta["val"].dtype == self.result.meta["val"].dtype
            and all(
                row >= 0
                and same_size(table.meta["val"].shape[row], tokens)
                and all(isinstance(size, int) for d, size in enumerate(table.meta["val"].shape) if d != row)
                for table, row in tables
            )
        )

    def of_all(self, g: Builder, whole: fx.Node, parts: Sequence[fx.Node]) -> fx.Node:
        """The same of ``whole``, of which all ``parts`` but one stay as they are."""
        made = {self.part: whole}
        for node in self.chain:
            args: Any = fx.map_arg(node.args, lambda n: made.get(n, n))
            if packet(node) is aten.reshape:
                shape = list(args[1])
                shape[self.dim] = g.size(whole, self.dim)
                args = (args[0], shape)
            made[node] = g.call(node.target, *args, **node.kwargs)
        by, across = (
            self._table(g, table, parts, number) for table, number in ((self.by, 1.0), (self.across, 0.0))
        )
        return g.add(g.mul(whole, by), g.mul(made[self.chain[-1]], across))

    def _table(self, g: Builder, table: fx.Node, parts: Sequence[fx.Node], number: float) -> fx.Node:
        """``table``, with rows of ``number`` for what stays as it is."""
        value, row = table.meta["val"], self._row_dim(table)
        rows = []
        for part in parts:
            if part is self.result:
                rows.append(table)
                continue
            shape = [
                int(part.meta["val"].shape[self.dim]) if d == row else int(n)
                for d, n in enumerate(value.shape)
            ]
            rows.append(g.call(aten.full.default, shape, number, dtype=value.dtype, device=value.device))
        return g.call(aten.cat.default, rows, row)

    def _row_dim(self, table: fx.Node) -> int:
        return self.dim - int(self.part.meta["val"].dim() - table.meta["val"].dim())


def _turned(node: fx.Node, dim: int) -> _Turned | None:
    """``node`` as the turned tokens of a part, if it is that."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return None
    products = [_factors(operand) for operand in node.args]
    for (part, by), (other, across) in (
        (one, two)
        for first, second in (products, products[::-1])
        for one in (first, first[::-1])
        for two in (second, second[::-1])
        if one and two
    ):
        chain = _chain(other, part, dim)
        if chain and part not in (by, across) and not {by, across} & set(chain):
            return _Turned(node, part, by, across, chain, dim)
    return None


def _factors(node: Any) -> tuple[fx.Node, ...]:
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor:
        return ()
    return tuple(a for a in node.args if isinstance(a, fx.Node)) if len(node.all_input_nodes) == 2 else ()


def _chain(end: fx.Node, part: fx.Node, dim: int) -> tuple[fx.Node, ...]:
    """The nodes that make ``end`` of ``part`` alone, token by token; empty where they do something else."""
    order: list[fx.Node] = []

    def visit(node: fx.Node) -> bool:
        # Sizes are no values.
        if node is part or node in order or isinstance(node.meta.get("val"), torch.SymInt):
            return True
        if len(order) >= _LONGEST or not _is_tokenwise(node, dim):
            return False
        if not all(map(visit, node.all_input_nodes)):
            return False
        order.append(node)
        return True

    return tuple(order) if visit(end) else ()


def _is_tokenwise(node: fx.Node, dim: int) -> bool:
    """Whether an operator leaves the tokens at ``dim`` and makes each of itself."""
    kind = packet(node)
    if kind in (aten.neg, operator.getitem):
        return True
    if kind in (aten.slice, aten.cat):
        own = argument(node, 1, 0)
        return _positive(own, node) != dim
    if kind is aten.stack:
        return _positive(argument(node, 1, 0), node) > dim
    if kind in (*_SPLITS, aten.unbind):
        source: Any = node.args[0]
        place = int(argument(node, 1 if kind is aten.unbind else 2, 0)) % source.meta["val"].dim()
        return place > dim
    if kind is aten.reshape:
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape  # type: ignore[union-attr]
        return min(len(before), len(after)) > dim and all(
            same_size(before[d], after[d]) for d in range(dim + 1)
        )
    return False


def _span(node: fx.Node, dim: int) -> _Span | None:
    """``node`` as entries of ``dim`` of another value."""
    if node.target is aten.slice.Tensor and _positive(argument(node, 1, 0), node) == dim:
        source: Any = node.args[0]
        start, stop = argument(node, 2) or 0, argument(node, 3)
        stop = None if stop == TO_THE_END else stop
        if argument(node, 4, 1) != 1 or not isinstance(start, int) or start < 0:
            return None
        if stop is not None and (not isinstance(stop, int) or stop < 0):
            return None
        return _Span(source, start, stop)
    split: Any = node.args[0] if node.target is operator.getitem else None
    if split is None or packet(split) not in _SPLITS:
        return None
    index: Any = node.args[1]
    sizes = [part.shape[dim] for part in split.meta["val"]]
    if int(argument(split, 2, 0)) % len(node.meta["val"].shape) != dim:
        return None
    if not all(isinstance(size, int) for size in sizes[: index + (index + 1 < len(sizes))]):
        return None
    start = sum(sizes[:index])
    return _Span(split.args[0], start, None if index + 1 == len(sizes) else start + sizes[index])


def _joined(spans: Sequence[_Span | None], dim: int) -> fx.Node | None:
    """What the spans are all of, one behind the other."""
    place: int | None = 0
    for span in spans:
        if span is None or span.start != place or span.source is not spans[0].source:  # type: ignore[union-attr]
            return None
        size = span.source.meta["val"].shape[dim]
        place = None if span.stop is None or span.stop == size else span.stop
    return spans[0].source if place is None and spans[0] is not None else None


def _positive(dim: Any, node: fx.Node) -> int:
    return int(dim) % int(node.meta["val"].dim())
