"""A model that is a table, and drafts of it: they cost nothing, so that tens of thousands of texts can be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from guesses import CHEAP
from torch import Tensor

from tersor.ir.drafting import DraftModel
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.tree import Branching

VOCABULARY = 4
# How far logits lie from each other, and what they are: of such tables that whose draws tell most of their temperature.
_SPREAD, _SEED = 1.5, 28


def table(seed: int, *shape: int) -> Tensor:
    """Logits ``[..., vocabulary]``."""
    return _SPREAD * torch.randn(*shape, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@dataclass
class ScriptedCache:
    """The tokens that each row holds, and those of the last step."""

    most: int
    texts: list[list[int]]
    written: Sequence[Sequence[int]] = ()

    def reserve(self, new: int) -> None: ...

    def commit(self, row: int, written: int, kept: Sequence[int]) -> None:
        assert written == len(self.written[row])
        self.texts[row] += [self.written[row][node] for node in kept]

    def remove(self, row: int) -> None:
        self.texts[row] = self.texts[-1]
        self.texts.pop()

    def add(self) -> int:
        self.texts.append([])
        return len(self.texts) - 1


@dataclass
class ScriptedDecoder:
    """Takes the place of ``Decoder``: logits follow from the last two tokens, as a table says.

    Attributes:
        probes: how many prompt tokens it has; what it says behind them follows from the token they stand behind.
    """

    probes: int = 0
    says: Tensor = field(default_factory=lambda: table(_SEED, VOCABULARY, VOCABULARY))
    foretells: Tensor = field(default_factory=lambda: table(1, 8, VOCABULARY))
    stepping: Any = field(default_factory=lambda: SimpleNamespace(branches=True))
    vocabulary: int = VOCABULARY
    largest_id: int = VOCABULARY - 1
    longest: int | None = None
    rounds_activations: bool = False
    cost_curve: CostCurve = CHEAP
    lower: Any = None

    def new_cache(self, rows: int) -> ScriptedCache:
        return ScriptedCache(rows, [[] for _ in range(rows)])

    def most_new(self, cache: ScriptedCache) -> int:
        return 64

    def prefill(self, cache: ScriptedCache, row: int, tokens: Sequence[int]) -> Tensor:
        cache.texts[row] = list(tokens)
        return self.behind(tokens)

    def behind(self, text: Sequence[int]) -> Tensor:
        """Logits ``[vocabulary]`` behind a text."""
        return self.says[text[-2], text[-1]]

    def try_step(
        self, cache: ScriptedCache, tokens: Sequence[Sequence[int]], branching: Branching | None = None
    ) -> Tensor:
        cache.written = tokens
        ids, width = torch.tensor(tokens), len(tokens[0])
        held = torch.tensor([text[-1] for text in cache.texts])[:, None]
        if branching is None:
            return self.says[torch.cat([held, ids[:, :-1]], 1), ids]
        # Of those that a node sees, the deepest but itself is what it follows.
        sees = branching.ancestors & ~torch.eye(width, dtype=torch.bool)
        deepest = torch.where(sees, branching.depths[:, None] + 1, 0).max(2)
        follows = torch.where(deepest.values > 0, ids.gather(1, deepest.indices), held)
        logits = self.says[follows, ids]
        if branching.probes is None:
            return logits
        behind = self.foretells[branching.probes, ids]
        return torch.where(branching.probes[..., None] > 0, behind, logits)


class ScriptedModels:
    """Takes the place of ``DraftModels``: models that say about what the decoder says, each in its own way."""

    def __init__(self, models: Mapping[str, DraftModel], decoder: ScriptedDecoder) -> None:
        self._says = {
            name: (decoder.says + 0.5 * table(number, VOCABULARY, VOCABULARY), model.cache)
            for number, (name, model) in enumerate(models.items())
        }

    def rows(self, place: Any) -> dict[str, ScriptedRow]:
        texts: dict[str, list[int]] = {}
        return {
            name: ScriptedRow(says, texts.setdefault(cache, [])) for name, (says, cache) in self._says.items()
        }


@dataclass
class ScriptedRow:
    """One such model over one text, of which its cache, which others may share, holds nothing but the tokens."""

    says: Tensor
    text: list[int]
    longest: int | None = None
    seconds: float = 0.0
    stepping: Any = field(default_factory=lambda: SimpleNamespace(slots=()))

    def unread(self, text: Sequence[int]) -> int:
        return 0

    def start(self, text: Sequence[int], most: int, keep: bool = True) -> Tensor:
        self.text[:] = text
        return self._behind()

    def next(self, token: int) -> Tensor:
        self.text.append(token)
        return self._behind()

    def check(self, tokens: Sequence[int]) -> Tensor:
        return torch.stack([self.next(token) for token in tokens])

    def take_back(self, count: int) -> None:
        del self.text[len(self.text) - count :]

    def results(self, token: int) -> Mapping[str, Tensor]:
        return {}

    def states(self) -> Mapping[str, Tensor]:
        return {}

    def hold(self, text: Sequence[int], states: Mapping[str, Tensor]) -> None: ...

    def _behind(self) -> Tensor:
        return self.says[self.text[-2], self.text[-1]]
