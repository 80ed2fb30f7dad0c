"""The tree has the likeliest of all paths that ranks allow, and no more nodes than a step may check."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tersor.passes.speculate.best_first import Guess
from tersor.passes.speculate.ranked_tree import ranked_tree

NODES = 64


@given(st.integers(1, 6), st.integers(0, 4), st.integers(1, 6), st.integers(0, 99))
def test_it_is_that_of_the_likeliest_nodes_of_all(
    candidates: int, deepest: int, known: int, seed: int
) -> None:
    """Against all paths there are, in order; a path is never likelier than what it follows."""
    chances = np.random.default_rng(seed).uniform(0.01, 1, (4, 6, 6))

    def guesses(ahead: int, token: int | None) -> list[Guess]:
        return [Guess(rank, 10 + rank, chances[ahead, token or 0, rank]) for rank in range(known)]

    def chance(path: tuple[int, ...]) -> float:
        return prod(
            chances[place, before, rank]
            for place, (before, rank) in enumerate(zip((0, *path), path, strict=False))
        )

    every = [path for depth in range(1, 1 + deepest) for path in product(range(known), repeat=depth)]
    wanted = sorted((path for path in every if sum(path) < candidates), key=chance, reverse=True)[:NODES]
    drafts = ranked_tree(guesses, candidates, deepest)
    found = {tuple(draft.tokens[:depth]) for draft in drafts for depth in range(1, 1 + len(draft.tokens))}
    assert found == set(wanted)
    for draft in drafts:
        assert draft.kinds == [10 + rank for rank in draft.tokens]
        assert not draft.probed
    # Each ends where nothing follows.
    assert len({tuple(draft.tokens) for draft in drafts}) == len(drafts)


def test_what_follows_from_prompt_tokens_says_so() -> None:
    assert all(draft.probed for draft in ranked_tree(lambda *_: [Guess(1, 0, 0.5)], 1, 2, probed=True))
