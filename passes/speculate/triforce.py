"""TriForce (Sun et al. 2024): the model drafts over the part of its own cache that matters now.

Chunks of earlier tokens are chosen by what the query of the last token makes of the mean of their keys.  Below it, an
early exit of the model, in place of the paper's smaller model, may draft for the draft, over the first tokens and the
latest (StreamingLLM, Xiao et al. 2023), always by the likeliest token; what it guesses is checked over the chosen
chunks first, and over all of the cache by the model in the end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import ClassVar

import torch
from torch import Tensor

from tersor.ir.drafting import NO_ROWS, Drafting, DraftModel, DraftRow, Guessing, Rows
from tersor.ir.fewer_layers import fewer_layers
from tersor.ir.program import Program
from tersor.ir.show_queries import query_name, show_queries
from tersor.ir.stepping import Stepping

from .draft_loop import ModelDrafter, ModelDrafting

_QUERIES, _SPARSE, _STREAM = "queries", "sparse", "stream"
# Tokens at the start that StreamingLLM keeps.
_SINKS = 4
# Guesses of the lower level that the upper one checks at once.
_CHECKED = 4


@dataclass(frozen=True)
class TriForce(ModelDrafter):
    """Guess with the whole model over the chunks of its cache that its latest query asks for."""

    name: ClassVar[str] = "triforce"
    reported: ClassVar[str] = "2.31x, Llama2-7B-128K on A100"

    budget: int = field(default=1024, metadata={"help": "earlier tokens that the draft looks at"})
    chunk: int = field(default=8, metadata={"help": "tokens that are chosen together"})
    refresh: int = field(default=16, metadata={"help": "new tokens after which others are chosen"})
    under: int = field(
        default=0, metadata={"help": "layers of the early exit that drafts for the draft; 0 for none"}
    )

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= self.budget or self.refresh < 1 or self.under < 0:
            raise ValueError(
                f"chunk={self.chunk} must be 1 or more and at most budget={self.budget}, refresh={self.refresh} "
                f"1 or more, under={self.under} 0 or more"
            )

    def models(self, program: Program) -> Mapping[str, DraftModel]:
        models = {
            _QUERIES: DraftModel(show_queries(program)),
            _SPARSE: DraftModel(program, _SPARSE),
        }
        if self.under:
            models[_STREAM] = DraftModel(fewer_layers(program, range(self.under)), _STREAM)
        return models

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        sparse = _Sparse(self, rows[_QUERIES], rows[_SPARSE])
        row: Guessing = sparse
        if self.under:
            row = _Hierarchy(sparse, rows[_QUERIES], rows[_STREAM], self.budget)
        return ModelDrafting({_SPARSE: row}, self._balances)


class _Sparse:
    """The model over chosen chunks; others are chosen now and then."""

    def __init__(self, options: TriForce, whole: DraftRow, sparse: DraftRow) -> None:
        self._options, self._whole, self._sparse = options, whole, sparse
        self._chosen_at: int | None = None

    @property
    def longest(self) -> int | None:
        return self._whole.longest

    @property
    def seconds(self) -> float:
        return self._sparse.seconds

    def unread(self, text: Sequence[int]) -> int:
        return 0

    def start(self, text: Sequence[int], most: int, keep: bool = True) -> Tensor:
        if self._chosen_at is None or len(text) >= self._chosen_at + self._options.refresh:
            self._choose(text)
            self._chosen_at = len(text)
        return self._sparse.start(text, most)

    def next(self, token: int) -> Tensor:
        return self._sparse.next(token)

    def check(self, tokens: Sequence[int]) -> Tensor:
        return self._sparse.check(tokens)

    def take_back(self, count: int) -> None:
        self._sparse.take_back(count)

    def _choose(self, text: Sequence[int]) -> None:
        options = self._options
        results = self._whole.results(text[-1]) if len(text) - 1 > options.budget else {}

        def chosen(key: str, states: Mapping[str, Tensor]) -> Tensor | None:
            query = results.get(query_name(key))
            if query is None:
                return None
            return chosen_tokens(query[0, :, -1], states[key], options.chunk, options.budget)

        self._sparse.hold(text[:-1], _part_of(self._whole, self._sparse.stepping, chosen))


class _Hierarchy:
    """Chosen chunks that check what an early exit guesses from the first tokens and the latest."""

    def __init__(self, upper: _Sparse, whole: DraftRow, lower: DraftRow, budget: int) -> None:
        self._upper, self._whole, self._lower, self._budget = upper, whole, lower, budget
        # Tokens that the upper level was given and nobody has asked about yet, and what it said behind them.
        self._checked: list[tuple[int, Tensor]] = []
        # Tokens behind the text that are sure so far, and those that the lower level was given.
        self._path: list[int] = []
        self._fed: list[int] = []

    @property
    def longest(self) -> int | None:
        return self._upper.longest

    @property
    def seconds(self) -> float:
        # One step of the upper level checks what several of the lower one guess.
        return self._lower.seconds + self._upper.seconds / _CHECKED

    def unread(self, text: Sequence[int]) -> int:
        return 0

    def start(self, text: Sequence[int], most: int, keep: bool = True) -> Tensor:
        self._checked, self._path, self._fed = [], [], []
        latest = max(1, self._budget - _SINKS)

        def ends(key: str, states: Mapping[str, Tensor]) -> Tensor | None:
            place = torch.arange(states[key].shape[1])
            return place[(place < _SINKS) | (place >= len(place) - latest)]

        self._lower.hold(text[:-1], _part_of(self._whole, self._lower.stepping, ends))
        self._lower.start(text, most + _CHECKED)
        return self._upper.start(text, most + _CHECKED)

    def next(self, token: int) -> Tensor:
        self._path.append(token)
        if self._checked and self._checked[0][0] == token:
            return self._checked.pop(0)[1]
        self._upper.take_back(len(self._checked))
        guesses = self._guesses()
        logits = self._upper.check([token, *guesses])
        self._checked = list(zip(guesses, logits[1:], strict=True))
        return logits[0]

    def _guesses(self) -> list[int]:
        """What the lower level guesses behind the path."""
        # The last of the path is given again, so that there is something to read.
        alike = map(operator.eq, self._fed, self._path[:-1])
        common = sum(takewhile(bool, alike))
        self._lower.take_back(len(self._fed) - common)
        logits = self._lower.check(self._path[common:])[-1]
        guesses = [int(logits.argmax())]
        while len(guesses) < _CHECKED - 1:
            guesses.append(int(self._lower.next(guesses[-1]).argmax()))
        self._fed = [*self._path, *guesses[:-1]]
        return guesses


def chosen_tokens(query: Tensor, key: Tensor, chunk: int, budget: int) -> Tensor:
    """The tokens of the chunks whose mean keys the queries like most, and of the last one, ascending: int64 ``[kept]``.

    Args:
        query: ``[heads, head_dim]``.  key: ``[kv_heads, tokens, head_dim]``.
        chunk, budget: tokens that are chosen together, and of all that are chosen in whole chunks.
    """
    kv_heads, tokens, width = key.shape
    whole = tokens // chunk
    means = key[:, : whole * chunk].reshape(kv_heads, whole, chunk, width).mean(2)
    scores = torch.einsum("hqd,hcd->c", query.reshape(kv_heads, -1, width), means)
    best = scores.topk(min(budget // chunk, whole)).indices.sort().values
    inside = (best[:, None] * chunk + torch.arange(chunk)).flatten()
    return torch.cat([inside, torch.arange(whole * chunk, tokens)])


def _part_of(
    row: DraftRow, stepping: Stepping, chosen: Callable[[str, Mapping[str, Tensor]], Tensor | None]
) -> dict[str, Tensor]:
    """The states of ``row`` that ``stepping`` names; of layers that look at all tokens, ``chosen`` ones (None: all).

    A key comes before its value; ``chosen`` is told the name of the key.
    """
    states = row.states()
    part = {}
    for slots in stepping.slots:
        for key, value in zip(slots.states[::2], slots.states[1::2], strict=True):
            index = None if slots.window else chosen(key.name, states)
            for state in (key, value):
                part[state.name] = states[state.name] if index is None else states[state.name][:, index]
    return part
