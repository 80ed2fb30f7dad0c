"""A tree of guesses out of what is likely at each place, ranked: its likeliest nodes, found best first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from tersor.ir.drafting import Draft

# Nodes at most: as many as the widest step has that is ever measured.
_NODES = 64


class Guess(NamedTuple):
    """A token that may stand at a place: the kind of the guess, and how likely it is if those before it are right."""

    token: int
    kind: int
    chance: float


class _Node(NamedTuple):
    """A guess behind that of another node, and by how much the ranks of those behind it may still add up."""

    guess: Guess
    parent: int
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
    nodes: list[_Node] = []
    ahead: list[tuple[float, int, _Node]] = []
    leaves: dict[int, None] = {}

    def open_behind(parent: int, depth: int, token: int | None, ranks: int, chance: float) -> None:
        """Let what may follow a node be chosen."""
        if depth < deepest:
            for rank, guess in enumerate(guesses(depth, token)[: 1 + ranks]):
                node = _Node(guess, parent, depth + 1, ranks - rank)
                # Of what is as likely the one that was found first.
                number = len(nodes) * (1 + candidates) + rank
                heapq.heappush(ahead, (-chance * guess.chance, number, node))

    open_behind(-1, 0, None, candidates - 1, 1.0)
    while ahead and len(nodes) < _NODES:
        chance, _, node = heapq.heappop(ahead)
        number = len(nodes)
        nodes.append(node)
        leaves.pop(node.parent, None)
        leaves[number] = None
        open_behind(number, node.depth, node.guess.token, node.ranks, -chance)
    return [replace(_path(nodes, leaf), probed=probed) for leaf in leaves]


def _path(nodes: Sequence[_Node], last: int) -> Draft:
    """The guesses that lead to a node."""
    path: list[Guess] = []
    while last >= 0:
        path.append(nodes[last].guess)
        last = nodes[last].parent
    path.reverse()
    return Draft([g.token for g in path], [g.kind for g in path], [g.chance for g in path])
