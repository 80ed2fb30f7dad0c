"""Programs that are run a few tokens at a time and keep what they computed of the earlier ones.

Such a Program reads *states*, tensors that hold one entry for every earlier token, and gives them back with those of
the new tokens written behind.  ``Stepping`` names what drives it; ``run_in_steps`` is what it means: fed in pieces,
it computes what the Program without states computes of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .program import TensorSpec

Step = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class State:
    """A tensor ``[batch, heads, slots, width]`` that is kept between calls, or a pool ``[pages, heads, page, width]``.

    Attributes:
        name: the input that holds it before the call.  result: the output that holds it afterwards.
    """

    name: str
    result: str


@dataclass(frozen=True)
class Pages:
    """How rows share pools of pages: slot ``n`` of a row is slot ``n % size`` of page ``n // size`` in its table.

    Attributes:
        table: the input, int64 ``[batch, blocks]``, that says which pages are a row's, in the order of its slots.
            What it says of blocks without filled slots is read and never seen.
        blocks: the dimension that counts the pages of a row.
        size: how many slots a page has.
    """

    table: str
    blocks: str
    size: int

    def needed(self, slots: int) -> int:
        """How many pages so many slots of one row are in."""
        return -(-slots // self.size)


@dataclass(frozen=True)
class Slots:
    """States whose slots hold the same tokens: those numbered below ``length`` are filled, in the order of tokens.

    Attributes:
        capacity: the dimension that counts the slots, or the pages of the pool.
        length: the input, int64 ``[batch]``, that says how many of a row's slots are filled.
        window: how many tokens back a query looks, itself included; 0 where it looks at all of them.
        states: what is kept in the slots.
        pages: None where every row has slots of its own.
    """

    capacity: str
    length: str
    window: int
    states: tuple[State, ...]
    pages: Pages | None = None

    @property
    def driven(self) -> frozenset[str]:
        """The inputs that say what is kept and where."""
        table = () if self.pages is None else (self.pages.table,)
        return frozenset({self.length, *table, *(state.name for state in self.states)})

    def sizes(self, rows: int, slots: int) -> dict[str, int]:
        """Its dimensions where it is to hold so many slots of so many rows."""
        if self.pages is None:
            return {self.capacity: slots}
        blocks = self.pages.needed(slots)
        return {self.capacity: rows * blocks, self.pages.blocks: blocks}

    def to_json(self) -> dict[str, Any]:
        states = [[state.name, state.result] for state in self.states]
        plain = {
            "capacity": self.capacity, "length": self.length, "window": self.window, "states": states,
        }  # fmt: skip
        if self.pages is None:
            return plain
        return {**plain, "pages": [self.pages.table, self.pages.blocks, self.pages.size]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Slots:
        """What :meth:`to_json` wrote; errors as of ``Stepping.from_json``."""
        pages = None
        if "pages" in data:
            table, blocks, size = data["pages"]
            pages = Pages(str(table), str(blocks), int(size))
        states = tuple(State(str(name), str(result)) for name, result in data["states"])
        return Slots(str(data["capacity"]), str(data["length"]), int(data["window"]), states, pages)


@dataclass(frozen=True)
class Branches:
    """The inputs that let the new tokens of a step be a tree: several guesses of what follows.

    Attributes:
        depth: int64 ``[batch, tokens]``, how many of the new tokens lead to each.
        ancestors: bool ``[batch, tokens, tokens]``, which new tokens (last dim) each sees, itself included.
        probes: int64 ``[batch, tokens]``, which trained prompt token stands in the place of each, from 1 up; 0 where
            the token itself does.  None where the Program has no prompt tokens (see ``prompt_tokens``).
    """

    depth: str
    ancestors: str
    probes: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.depth, self.ancestors, *(() if self.probes is None else (self.probes,)))


@dataclass(frozen=True)
class Stepping:
    """The names of what drives a Program that is run in steps.

    Attributes:
        ids: the input ``[batch, tokens]`` of new tokens; those of a row come first, padding behind them.
        padding: the input ``[batch, tokens]`` that is 0 at padding; None where no input says so.
        positions: the input, int64 ``[batch, tokens]``, that says which token of its row each new one is.
        wanted: the input, int64 ``[batch, wanted]``, that says of which new tokens there are outputs.
        by_index: whether the model itself counts padding in front of a token among its positions.
        slots: what is kept.
        branches: None where the new tokens of a row follow each other.
    """

    ids: str
    padding: str | None
    positions: str
    wanted: str
    by_index: bool
    slots: tuple[Slots, ...]
    branches: Branches | None = None

    @property
    def driven(self) -> frozenset[str]:
        """The inputs that whoever drives the Program gives, and its caller does not."""
        branches = () if self.branches is None else self.branches.inputs
        kept = (name for slots in self.slots for name in slots.driven)
        return frozenset({self.positions, self.wanted, *branches, *kept})

    @property
    def results(self) -> frozenset[str]:
        """The outputs that hold states."""
        return frozenset(state.result for slots in self.slots for state in slots.states)

    def to_json(self) -> dict[str, Any]:
        names = {"ids": self.ids, "padding": self.padding, "positions": self.positions, "wanted": self.wanted}
        branches = None if self.branches is None else list(self.branches.inputs)
        return {
            **names,
            "by_index": self.by_index,
            "slots": [s.to_json() for s in self.slots],
            "branches": branches,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Stepping:
        """What :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        branches = None
        if data["branches"] is not None:
            depth, ancestors, *probes = map(str, data["branches"])
            branches = Branches(depth, ancestors, *probes)
        return Stepping(
            str(data["ids"]),
            None if data["padding"] is None else str(data["padding"]),
            str(data["positions"]),
            str(data["wanted"]),
            bool(data["by_index"]),
            tuple(map(Slots.from_json, data["slots"])),
            branches,
        )


def run_in_steps(
    stepping: Stepping,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    step: Step,
    given: Mapping[str, Tensor],
    bounds: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """What the Program without states gives for whole rows, from one that is run in steps.

    Args:
        inputs, outputs: those of the Program, driven ones and states included.
        step: runs it once, inputs by name, outputs in order.
        given: the caller's inputs, whole rows; padding may be on either side of a row.
        bounds: after how many tokens a step ends; by default half of them come first, then one, then one more, then
            the rest, so that every kind of step is there.

    Returns:
        outputs ``[batch, tokens, ...]`` without the states; zeros at padding.
    """
    ids = given[stepping.ids]
    batch, tokens = ids.shape
    real = torch.ones_like(ids, dtype=torch.bool)
    if stepping.padding is not None:
        real = given[stepping.padding].bool()
    lengths = real.sum(1)
    # Stable: real tokens move to the front of their row and keep their order.
    order = torch.argsort((~real).to(torch.int8), dim=1, stable=True)
    rows = {
        spec.name: given[spec.name].gather(1, order)
        for spec in inputs
        if spec.name in (stepping.ids, stepping.padding)
    }
    # The last step may have as many decoys as it has tokens.
    states = _empty(stepping, inputs, batch, tokens if stepping.branches is None else 2 * tokens)
    pieces: list[list[Tensor]] = []
    for start, stop in _steps(tokens, bounds):
        fed = {name: row[:, start:stop] for name, row in rows.items()}
        # Whole rows are what the model says they are; without a cache, it may count padding too.
        fed[stepping.positions] = (
            order[:, start:stop] if stepping.by_index else torch.arange(start, stop).expand(batch, -1)
        )
        fed[stepping.wanted] = torch.arange(stop - start).expand(batch, -1)
        if stepping.branches is not None:
            # What other guesses leave in the slots would be in the way of later steps, so that the last has them.
            room = tokens - (stop - start) if stop == tokens else 0
            fed = _with_decoys(stepping, stepping.branches, fed, min(room, stop - start))
        fed |= {slots.length: lengths.clamp(max=start) for slots in stepping.slots}
        # A row that has ended holds all its tokens; what it is fed beyond is never seen.
        results = dict(zip((spec.name for spec in outputs), step({**fed, **states}), strict=True))
        for slots in stepping.slots:
            states |= {state.name: results[state.result] for state in slots.states}
        pieces.append([results[spec.name] for spec in outputs if spec.name not in stepping.results])
    return tuple(_in_order(list(parts), order, real) for parts in zip(*pieces, strict=True))


def _with_decoys(
    stepping: Stepping, branches: Branches, fed: Mapping[str, Tensor], decoys: int
) -> dict[str, Tensor]:
    """A step whose first ``decoys`` tokens have a sibling before them, which no other token may see."""
    batch, count = fed[stepping.ids].shape
    # Which token each slot holds, or holds a sibling of; of two the second is the token.
    place = torch.tensor(sorted([*range(count), *range(decoys)]))
    true = torch.ones_like(place, dtype=torch.bool)
    true[0 : 2 * decoys : 2] = False
    branched = {name: tensor[:, place] for name, tensor in fed.items()}
    ids = branched[stepping.ids]
    branched[stepping.ids] = torch.where(true, ids, fed[stepping.ids].roll(1, 1)[:, place])
    branched[stepping.wanted] = true.nonzero()[:, 0].expand(batch, -1)
    before = place[:, None] > place[None, :]
    sees = (true[None, :] & before) | torch.eye(len(place), dtype=torch.bool)
    branched[branches.depth] = place.expand(batch, -1)
    branched[branches.ancestors] = sees.expand(batch, -1, -1)
    if branches.probes is not None:
        # Some siblings are prompt tokens, of which there is a first one.
        branched[branches.probes] = (~true & (place % 2 == 0)).long().expand(batch, -1)
    return branched


def _empty(stepping: Stepping, inputs: Sequence[TensorSpec], batch: int, slots: int) -> dict[str, Tensor]:
    """States without tokens, and the tables of pages, which stay what they are."""
    specs = {spec.name: spec for spec in inputs}
    empty = {}
    for kept in stepping.slots:
        first, size = batch, slots
        if kept.pages is not None:
            table = _scattered(batch, kept.pages.needed(slots))
            empty[kept.pages.table] = table
            first, size = table.numel() + 1, kept.pages.size
        for state in kept.states:
            spec = specs[state.name]
            _, heads, _, width = spec.shape
            empty[state.name] = torch.zeros(first, int(heads), size, int(width), dtype=spec.dtype)
    return empty


def _scattered(batch: int, blocks: int) -> Tensor:
    """A table in which rows take turns, from the last page to page 1: whoever goes by another is noticed."""
    return (batch * blocks - torch.arange(batch * blocks)).reshape(blocks, batch).T.contiguous()


def _steps(tokens: int, bounds: Sequence[int] | None) -> Iterator[tuple[int, int]]:
    if bounds is None:
        half = (tokens + 1) // 2
        bounds = [half, half + 1, half + 2]
    ends = sorted({min(max(1, bound), tokens) for bound in bounds} | {tokens})
    return pairwise([0, *ends])


def _in_order(parts: list[Tensor], order: Tensor, real: Tensor) -> Tensor:
    """The steps' outputs behind each other, every token where it is in the caller's rows."""
    whole = torch.cat(parts, dim=1)
    spread = order.reshape(*order.shape, *[1] * (whole.dim() - 2)).expand(whole.shape)
    placed = torch.zeros_like(whole).scatter(1, spread, whole)
    return placed.masked_fill(~real.reshape(*real.shape, *[1] * (whole.dim() - 2)), 0)
