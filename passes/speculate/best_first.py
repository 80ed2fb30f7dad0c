"""A tree of guesses, grown at its likeliest node first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import NamedTuple, TypeVar

from tersor.ir.drafting import Draft

Place = TypeVar("Place")


class Guess(NamedTuple):
    """A token that may stand at a place: the kind of the guess, and how likely it is if those before it are right."""

    token: int
    kind: int
    chance: float


def best_first(
    root: Place, behind: Callable[[Place], Iterable[tuple[Guess, Place]]], most: int
) -> list[Draft]:
    """The ``most`` likeliest guesses, as paths to those behind which there is none.

    Args:
        root: the place behind the last token of the text.
        behind: what may stand at a place, and the place behind each.
    """
    nodes: list[tuple[Guess, int]] = []
    ahead: list[tuple[float, int, Guess, int, Place]] = []
    # Of what is as likely the one that was found first.
    order = count()
    parent, place, reached = -1, root, 1.0
    while len(nodes) < most:
        for guess, further in behind(place):
            heapq.heappush(ahead, (-reached * guess.chance, next(order), guess, parent, further))
        if not ahead:
            break
        chance, _, guess, before, place = heapq.heappop(ahead)
        parent, reached = len(nodes), -chance
        nodes.append((guess, before))
    inner = {before for _, before in nodes}
    return [_path(nodes, leaf) for leaf in range(len(nodes)) if leaf not in inner]


def _path(nodes: Sequence[tuple[Guess, int]], last: int) -> Draft:
    """The guesses that lead to a node."""
    path: list[Guess] = []
    while last >= 0:
        guess, last = nodes[last]
        path.append(guess)
    path.reverse()
    return Draft([g.token for g in path], [g.kind for g in path], [g.chance for g in path])
