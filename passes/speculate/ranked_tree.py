"""A tree of guesses out of what is likely at each place, ranked: its likeliest nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tersor.ir.drafting import Draft

from .best_first import Guess, best_first

# Nodes at most: as many as the widest step has that is ever measured.
_NODES = 64


class _Place(NamedTuple):
    """Behind a token (None: the last of the text), and by how much the ranks of what stands there may still add up."""

    token: int | None
    depth: int
    ranks: int


def ranked_tree(
    guesses: Callable[[int, int | None], Sequence[Guess]], candidates: int, deepest: int, probed: bool = False
) -> list[Draft]:
    """The likeliest paths, at most 64 nodes; the ranks along a path add up to less than ``candidates``.

    So there may be ``candidates`` guesses of the next token, and fewer behind those that were no first choice.

    Args:
        guesses: of how many tokens ahead, and of the token before (None: the last of the text), what may follow, the
            first choice first.
        deepest: tokens ahead, at most.
        probed: as of :class:`Draft`.
    """

    def behind(place: _Place) -> Iterator[tuple[Guess, _Place]]:
        if place.depth < deepest:
            for rank, guess in enumerate(guesses(place.depth, place.token)[: 1 + place.ranks]):
                yield guess, _Place(guess.token, place.depth + 1, place.ranks - rank)

    drafts = best_first(_Place(None, 0, candidates - 1), behind, _NODES)
    return [replace(draft, probed=probed) for draft in drafts]
