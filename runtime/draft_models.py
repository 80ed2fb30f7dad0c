"""Models that guess, at work on the texts of a model that checks, over its cache or over one of their own."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from torch import Tensor

from tersor.ir.drafting import DraftModel, DraftRow
from tersor.ir.stepping import Stepping

from .decoder import Decoder, Lower
from .kv_cache import KvCache


@dataclass
class Place:
    """Where a text lies: in which row of which cache, which may change.

    Attributes:
        held: the tokens that the row holds; None where whoever else fills it sees to that.
        ahead: tokens that were written behind them and may turn out wrong, the last of the text first.
    """

    cache: KvCache
    row: int = 0
    held: list[int] | None = None
    ahead: list[int] = field(default_factory=list)


class DraftModels:
    """The models of a drafter, each lowered when it is first needed."""

    def __init__(self, models: Mapping[str, DraftModel], lower: Lower) -> None:
        self._decoders = {name: Decoder(model.program, lower) for name, model in models.items()}
        self._caches = {name: model.cache for name, model in models.items()}

    def rows(self, place: Place) -> dict[str, Row]:
        """All of them, at work on one text whose checked tokens are at ``place``."""
        places = {"": place}
        rows = {}
        for name, decoder in self._decoders.items():
            # Before anybody measures what guesses cost.
            decoder.prepare()
            cache = self._caches[name]
            if cache not in places:
                places[cache] = Place(decoder.new_cache(1), held=[])
            rows[name] = Row(decoder, places[cache])
        return rows


@dataclass(frozen=True)
class Row(DraftRow):
    """One model over the tokens of one text."""

    decoder: Decoder
    place: Place

    @property
    def longest(self) -> int | None:
        return self.decoder.longest

    @property
    def seconds(self) -> float:
        return self.decoder.step_seconds

    @property
    def stepping(self) -> Stepping:
        return self.decoder.stepping

    def unread(self, text: Sequence[int]) -> int:
        held = self.place.held
        return 0 if held is None else len(text) - 1 - len(held)

    def start(self, text: Sequence[int], most: int, keep: bool = True) -> Tensor:
        place = self.place
        if place.held is not None:
            alike = map(operator.eq, place.ahead, text[len(place.held) : -1])
            right = sum(takewhile(bool, alike)) if keep else 0
            place.cache.advance([right], place.row)
            place.held += place.ahead[:right]
            missing = text[len(place.held) : -1]
            if missing:
                self.decoder.prefill(place.cache, place.row, missing)
                place.held += missing
        place.ahead = []
        # A window that moved on the way would leave behind what was given ahead.
        place.cache.reserve(most, place.row)
        return self.next(text[-1])

    def next(self, token: int) -> Tensor:
        return self.check([token])[0]

    def check(self, tokens: Sequence[int]) -> Tensor:
        place = self.place
        logits = self.decoder.look_ahead(place.cache, place.row, tokens, len(place.ahead))
        place.ahead += tokens
        return logits

    def take_back(self, count: int) -> None:
        del self.place.ahead[len(self.place.ahead) - count :]

    def results(self, token: int) -> Mapping[str, Tensor]:
        return self.decoder.results_ahead(self.place.cache, self.place.row, [token], 0)

    def states(self) -> Mapping[str, Tensor]:
        return self.place.cache.states(self.place.row)

    def hold(self, text: Sequence[int], states: Mapping[str, Tensor]) -> None:
        place = self.place
        place.cache.hold(place.row, len(text), states)
        place.held, place.ahead = list(text), []
