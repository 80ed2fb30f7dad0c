"""Token Recycling: the model's own runners-up, kept by the token that they followed (Luo et al. 2024).

The paper's tree is a fixed one of 80 nodes, for a GPU.  Here the drafter offers a wider one, and what is checked of it
follows from how often each rank was right at each depth, and from what a node costs on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import chain, count, repeat
from typing import ClassVar

from torch import Tensor

from tersor.ir.drafting import GREEDILY, NO_ROWS, Draft, Drafting, Outlook, Rows

from .best_first import Guess
from .drafter import Drafter
from .likeliest import likeliest
from .ranked_tree import ranked_tree

# How often each rank was right, measured on prose, code and lists.
_CHANCES = (0.4, 0.06, 0.03, 0.02)


@dataclass(frozen=True)
class Recycle(Drafter):
    """Guess what the model thought likeliest behind each token when it stood last, in this text or an earlier one."""

    name: ClassVar[str] = "recycle"
    reported: ClassVar[str] = "about 2x"

    candidates: int = field(
        default=4, metadata={"help": "tokens that are kept behind each, and guessed behind the last"}
    )
    deepest: int = field(default=6, metadata={"help": "tokens ahead, at most"})

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.deepest < 1:
            raise ValueError(f"candidates={self.candidates} and deepest={self.deepest} must be 1 or more")

    @cached_property
    def _followers(self) -> dict[int, _Followers]:
        """The adjacency of the paper, rows of tokens that have been seen only; requests share it."""
        return {}

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        return _Recycling(self._followers, self.candidates, self.deepest)


@dataclass(frozen=True)
class _Followers:
    """Tokens that were likely behind another, the likeliest first, and their logits."""

    tokens: list[int]
    scores: list[float]


class _Recycling(Drafting):
    """One text, and what was likely behind tokens of all texts."""

    def __init__(self, followers: dict[int, _Followers], candidates: int, deepest: int) -> None:
        self._followers, self._candidates, self._deepest = followers, candidates, deepest
        self._last: int | None = None

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._last is not None:
                # What did follow comes first; of a prompt there is nothing else to go by.
                known = self._followers.get(self._last, _Followers([], []))
                others = [pair for pair in zip(known.tokens, known.scores, strict=True) if pair[0] != token]
                first = (token, max(known.scores, default=0.0))
                kept = [first, *others][: self._candidates]
                self._followers[self._last] = _Followers([t for t, _ in kept], [s for _, s in kept])
            self._last = token

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:
        # Of a token that was checked in several places the last counts, as in the paper.
        for token, scores in zip(tokens, logits.float().numpy(), strict=True):
            best = likeliest(scores, self._candidates)
            self._followers[token] = _Followers(best, scores[best].tolist())

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        if self._last is None:
            return []
        last = self._last

        @cache
        def guesses(ahead: int, token: int | None) -> list[Guess]:
            followers = self._ranked(last if token is None else token, ahead, outlook)
            return list(map(Guess, followers, count(), chain(_CHANCES, repeat(_CHANCES[-1]))))

        return ranked_tree(guesses, self._candidates, min(most, self._deepest))

    def _ranked(self, token: int, ahead: int, outlook: Outlook) -> list[int]:
        """What may follow ``token``, in the order in which it would be chosen so many tokens ahead."""
        known = self._followers.get(token)
        if known is None:
            return []
        scores = outlook.noisy(ahead, known.tokens, known.scores)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        return [known.tokens[place] for place in order]
