"""Which tokens are read by their position below the last block.

The token axis is followed from there to the outputs by the rules of ``ir/analyses/token_rules``.  Where an operator
narrows it, the positions that it reads are found as numbers counted from either end of the sequence.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tersor.ir.analyses.layers import Layers
from tersor.ir.analyses.located import Located
from tersor.ir.analyses.token_axis import (
    NONE,
    Dims,
    NotTokenwise,
    TokenAxis,
    depends_on_inputs,
    region_nodes,
)
from tersor.ir.analyses.token_rules import each_result
from tersor.ir.dialect import Role, traits_of
from tersor.ir.evaluate import evaluate, sources_of
from tersor.ir.operands import TO_THE_END, argument, find_operand
from tersor.ir.program import Program
from tersor.ir.same_elements import origin
from tersor.ir.shapes import expression, same_size

from .runs import Run

aten = torch.ops.aten
_SPLITS = (aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split, aten.unbind)
# Where the rules refuse these they sum or compare over the tokens, so that every one is read alike.
_REDUCTIONS = (
    aten.mean, aten.sum, aten.amax, aten.amin, aten.var, aten.std, aten.linalg_vector_norm, aten.prod,
)  # fmt: skip
_PRODUCTS = (aten.linear, aten.matmul, aten.bmm, aten.mm, aten.addmm, aten.baddbmm, aten.einsum)
# These leave every entry at its dim, but one entry is no longer one token.
_IN_PLACE = (
    aten.cat,
    aten.cumsum,
    aten.log_softmax,
    aten.softmax,
    aten._softmax,
    aten.layer_norm,
    aten.flip,
    aten.roll,
)


@dataclass(frozen=True)
class Read:
    """``ahead`` tokens from the start and ``behind`` from the end of a row hold every one that ``node`` reads."""

    node: fx.Node
    ahead: int
    behind: int


def positions_read(program: Program, stack: Layers) -> list[Read]:
    """What reads tokens by position below the last block of ``stack``.

    Raises:
        NotTokenwise: which positions a node reads is not known before the model runs, or not known at all.
    """
    if stack.end.meta["val"].dim() != 3:
        return []
    reads = _Reads(stack)
    for node in region_nodes(program, stack.end, program.output_node):
        reads.step(program, node)
    return reads.found_reads


class _Reads(Located):
    """Follows the tokens below the last block and notes what narrows their axis.

    Attributes:
        runs: the tokens that a value holds along its token dims, in order.
        blurred: values that hold tokens of which the positions are lost, and perhaps the dims.
    """

    def __init__(self, stack: Layers) -> None:
        super().__init__(TokenAxis(), stack.end, stack.token_dim)
        self.runs = {stack.end: Run.whole(stack.tokens)}
        self.blurred: set[fx.Node] = set()
        self.found_reads: list[Read] = []

    def step(self, program: Program, node: fx.Node) -> None:
        """Note where the tokens are in ``node``, and which ones it reads by position."""
        sources = [n for n in node.all_input_nodes if n in self.blurred or self._any_dims(n)]
        if not sources or not isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
            self.found[node] = NONE
            return
        if node.target is operator.getitem and self._piece(node, sources[0]):
            return
        if traits_of(node).role is Role.MOVES:
            self._restored(node)
            return
        for dim, given in _narrowed(node):
            if self._narrow(program, node, dim, given):
                return
        self.follow(node)
        self._inherit(node, sources)

    def lost(self, node: fx.Node) -> Dims:
        packet = getattr(node.target, "overloadpacket", None)
        sources = [n for n in node.all_input_nodes if self.dims(n)]
        if len(sources) == 1 and len(self.dims(sources[0])) == 1 and sources[0] not in self.blurred:
            if packet in _REDUCTIONS:
                return NONE
            if packet in _PRODUCTS and not self._may_hold(node, sources[0]):
                return NONE
        self.blurred.add(node)
        if packet in _IN_PLACE:
            return frozenset().union(*map(self.dims, sources))
        if packet in (aten.reshape, aten.view, aten._unsafe_view, aten.flatten, aten.unflatten):
            return _replaced_dims(node)
        return NONE

    def _any_dims(self, node: fx.Node) -> bool:
        found = self.found.get(node)
        return any(found) if isinstance(found, tuple) else bool(found)

    def _inherit(self, node: fx.Node, sources: Sequence[fx.Node]) -> None:
        if not self._any_dims(node):
            if any(n in self.blurred and not self._any_dims(n) for n in sources):
                self.blurred.add(node)
            return
        runs = {self.runs.get(n) for n in sources}
        if len(runs) > 1:
            # One token beside many is broadcast to them.
            runs = {run for run in runs if run is None or not run.is_one()}
        if len(runs) == 1 and self.blurred.isdisjoint(sources) and node not in self.blurred:
            run = runs.pop()
            if run is not None:
                self.runs[node] = run
                return
        self.blurred.add(node)

    def _restored(self, node: fx.Node) -> None:
        """An earlier pass brings tokens back: those kept by it as they are read by position stay in their order."""
        value: Any = find_operand(node, traits_of(node).content[0])
        self.found[node] = each_result(node, self.dims(value))
        if len(self.dims(value)) == 1 and value not in self.blurred:
            (dim,) = self.dims(value)
            if self.runs[value] == Run.whole(_value(value).shape[dim]):
                result = _value(node)
                size = (result if isinstance(result, torch.Tensor) else result[0]).shape[dim]
                self.runs[node] = Run.whole(size)
                return
        self.blurred.add(node)

    def _narrow(self, program: Program, node: fx.Node, dim: int, given: Any) -> bool:
        """Whether ``given`` (a span, or a node that holds positions) narrows the tokens, and its reading is noted."""
        source: Any = node.args[0]
        size = _value(source).shape[dim]
        if not self._is_narrowed(node, source, dim):
            return False
        if isinstance(given, fx.Node):
            self._index(program, node, source, dim, given)
            return True
        start, stop, step = given
        if stop is None:
            self._one(node, source, dim, start)
            self.found[node] = frozenset(d - (d > dim) for d in self.dims(source) if d != dim)
            if self.found[node]:
                self.blurred.add(node)
            return True
        if same_size(_value(node).shape[dim], size):
            return False
        if step != 1:
            raise NotTokenwise(node, f"reads one token in {step} by position; the others may be dropped")
        self._span(node, node, source, dim, start, stop)
        return True

    def _index(self, program: Program, node: fx.Node, source: fx.Node, dim: int, index: fx.Node) -> None:
        alone = _value(index).dim() == 1 and len(list(_narrowed(node))) == 1
        if alone and _is_all(index, _value(source).shape[dim]):
            self.found[node] = self.dims(source)
            self.runs[node] = self.runs[source]
            return
        positions = _numbers(program, index)
        if positions is None:
            inputs = ", ".join(sorted(depends_on_inputs(index))) or "sizes"
            raise NotTokenwise(
                node,
                f"reads tokens at positions computed from {inputs}, which are not known before the model runs, so that "
                "the tokens there may be dropped",
            )
        if (
            alone
            and positions == list(range(positions[0], positions[0] + len(positions)))
            and positions[0] >= 0
        ):
            self._span(node, node, source, dim, positions[0], positions[-1] + 1)
            return
        for position in set(positions):
            self._one(node, source, dim, position)
        self.found[node] = NONE
        if len(self.dims(source)) > 1:
            self.blurred.add(node)

    def _is_narrowed(self, node: fx.Node, source: fx.Node, dim: int) -> bool:
        """Whether ``dim`` of ``source`` holds tokens, each at a known position."""
        dims = self.dims(source)
        size = _value(source).shape[dim]
        if source in self.blurred and (dim in dims or not dims):
            kept = node.meta["val"]
            whole = node.target is aten.slice.Tensor and same_size(kept.shape[dim], size)
            if not whole:
                raise NotTokenwise(
                    node,
                    f"reads entries of {source.name} by position, and which tokens are in them was not followed",
                )
        return dim in dims and source not in self.blurred

    def _may_hold(self, product: fx.Node, source: fx.Node) -> bool:
        """Whether the token dim of ``source`` may be a dim of ``product`` too: a product's dims are its operands'."""
        (dim,) = self.dims(source)
        size = _value(source).shape[dim]
        return any(same_size(size, own) for own in _value(product).shape)

    def _piece(self, node: fx.Node, split: fx.Node) -> bool:
        """Whether ``node`` is a part of tokens that were split by position, and its reading is noted."""
        packet = getattr(split.target, "overloadpacket", None)
        if packet not in _SPLITS:
            return False
        source, index = split.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        assert isinstance(index, int)
        unbind = packet is aten.unbind
        dim = _positive(argument(split, 1 if unbind else 2, 0), source)
        if not self._is_narrowed(node, source, dim):
            return False
        if unbind:
            self._one(node, source, dim, index)
            self.found[node] = frozenset(d - (d > dim) for d in self.dims(source) if d != dim)
            if self.found[node]:
                self.blurred.add(node)
            return True
        sizes = [expression(part.shape[dim]) for part in split.meta["val"]]
        start = sum(sizes[:index], expression(0))
        self._span(split, node, source, dim, start, start + sizes[index])
        return True

    def _one(self, node: fx.Node, source: fx.Node, dim: int, position: Any) -> None:
        run = self._tokens_in(node, source, dim, position, None)
        self.found_reads.append(Read(node, *run.only()))

    def _span(self, by: fx.Node, node: fx.Node, source: fx.Node, dim: int, start: Any, stop: Any) -> None:
        """Note that ``node`` holds entries ``start`` to ``stop`` of ``source``."""
        run = self._tokens_in(by, source, dim, start, stop)
        around = run.around()
        if around is None:
            raise NotTokenwise(by, "reads tokens between positions that are counted from opposite ends")
        self.found_reads.append(Read(by, *around))
        self.found[node] = self.dims(source)
        if self.fold(source) is None and len(self.dims(source)) == 1:
            self.runs[node] = run
        else:
            self.blurred.add(node)

    def _tokens_in(self, node: fx.Node, source: fx.Node, dim: int, start: Any, stop: Any) -> Run:
        """The tokens of some entries of a dim, or of the one at ``start``.

        Raises:
            NotTokenwise: which ones they are is not known.
        """
        size, run, fold = expression(_value(source).shape[dim]), self.runs[source], self.fold(source)
        first = _within(start, size)
        last = first if stop is None else _within(stop, size)
        if fold is not None:
            if fold.outer != 1 or not fold.inner.is_Integer:
                raise NotTokenwise(node, "reads by position where tokens and others are folded together")
            if stop is not None and any(place % fold.inner != 0 for place in (first, last)):
                raise NotTokenwise(node, "reads some entries of a token by position and not the others")
            size, first, last = size / fold.inner, first // fold.inner, last // fold.inner
        begin, end = run.before(first, size), run.before(last, size)
        if begin is None or end is None:
            raise NotTokenwise(node, "reads tokens at positions that depend on the sizes of the inputs")
        return Run(begin, begin.moved(1) if stop is None else end, run.total)


def _narrowed(node: fx.Node) -> Iterator[tuple[int, Any]]:
    """Dims of its first operand that a node takes entries of, and which: ``(start, stop, step)`` or an index."""
    packet = getattr(node.target, "overloadpacket", None)
    source: Any = node.args[0]
    if packet is aten.select:
        yield _positive(node.args[1], source), (_number(node.args[2]), None, 1)
    elif packet is aten.slice:
        start, stop, step = argument(node, 2), argument(node, 3), argument(node, 4, 1)
        dim = _positive(argument(node, 1, 0), source)
        size = _value(source).shape[dim]
        stop = size if stop is None or stop == TO_THE_END else _number(stop)
        yield dim, (_number(start or 0), stop, step)
    elif packet is aten.narrow:
        dim = _positive(node.args[1], source)
        start = _within(_number(node.args[2]), expression(_value(source).shape[dim]))
        yield dim, (start, start + expression(_number(node.args[3])), 1)
    elif packet is aten.index:
        at = 0
        for index in node.args[1]:  # type: ignore[union-attr]
            # A table of truth values stands for as many dims as it has.
            dims = 1 if index is None or _value(index).dtype != torch.bool else _value(index).dim()
            if index is not None:
                yield from ((at + i, index) for i in range(dims))
            at += dims
    elif packet in (aten.index_select, aten.gather):
        yield _positive(node.args[1], source), node.args[2]
    elif packet is aten.take_along_dim and argument(node, 2) is not None:
        yield _positive(argument(node, 2), source), node.args[1]


def _is_all(index: fx.Node, size: Any) -> bool:
    """Whether an index counts up through every position of ``size``."""
    counted = origin(index)
    return counted.target is aten.arange.default and same_size(_value(counted).shape[0], size)


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _positive(dim: Any, source: fx.Node) -> int:
    return int(dim) % _value(source).dim()


def _number(value: Any) -> Any:
    """A position given as a number or as the node that computes it from sizes."""
    return value.meta["val"] if isinstance(value, fx.Node) else value


def _within(position: Any, size: Any) -> Any:
    """A position counted from the start, as a sympy number that is at most ``size``."""
    position = expression(position) if isinstance(position, int | torch.SymInt) else position
    if position.is_Integer and position < 0:
        position = position + size
        return max(position, expression(0)) if position.is_Integer else position
    return min(position, size) if position.is_Integer and size.is_Integer else position


def _numbers(program: Program, index: fx.Node) -> list[int] | None:
    """The positions that a constant index holds; None where it is computed."""
    held = origin(index)
    if any(node.op == "placeholder" for node in sources_of([held])):
        return None
    values = evaluate(program, [held], {})[held]
    if values.dtype == torch.bool:
        return [int(i) for i in values.nonzero()] if values.dim() == 1 else None
    return [int(i) for i in values.flatten()]


def _replaced_dims(node: fx.Node) -> Dims:
    """The dims of a reshape's result that are not at both its ends as they were."""
    source: Any = node.args[0]
    before, after = _value(source).shape, _value(node).shape
    same = [expression(a) == expression(b) for a, b in zip(before, after, strict=False)]
    ahead = same.index(False) if False in same else len(same)
    same = [expression(a) == expression(b) for a, b in zip(before[::-1], after[::-1], strict=False)]
    behind = same.index(False) if False in same else len(same)
    return frozenset(range(ahead, max(ahead, len(after) - behind)))
