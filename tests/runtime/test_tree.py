"""Trees of guesses: merged where they begin alike, cut where they promise little, checked side by side."""

from __future__ import annotations

import torch
from guesses import draft_of, learn
from hypothesis import given
from hypothesis import strategies as st

from tersor.runtime.speculation import Rates
from tersor.runtime.tree import TokenTree, side_by_side


def tree_of(*chains: list[int]) -> TokenTree:
    return TokenTree.of(9, [draft_of(tokens) for tokens in chains])


chains = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=6)


def texts(tree: TokenTree) -> set[tuple[int, ...]]:
    """The tokens that lead to every node."""
    found = set()
    for node in range(1, len(tree)):
        path = []
        while node > 0:
            path.append(tree.tokens[node])
            node = tree.parents[node]
        found.add(tuple(reversed(path)))
    return found


@given(chains)
def test_it_holds_every_beginning_of_every_chain_once(given_: list[list[int]]) -> None:
    tree = tree_of(*given_)
    beginnings = {tuple(c[:n]) for c in given_ for n in range(1, len(c) + 1)}
    assert texts(tree) == beginnings
    assert len(tree) == 1 + len(beginnings)


@given(chains)
def test_paths_are_the_nodes_that_lead_there(given_: list[list[int]]) -> None:
    tree = tree_of(*given_)
    paths = tree.paths()
    for node in range(len(tree)):
        expected, at = {node}, node
        while at > 0:
            at = tree.parents[at]
            expected.add(at)
        assert set(paths[node].nonzero()[:, 0].tolist()) == expected
        assert tree.depths[node] == len(expected) - 1


@given(chains, st.integers(0, 12))
def test_the_likeliest_part_is_a_tree(given_: list[list[int]], most: int) -> None:
    tree = tree_of(*given_)
    nodes, chances = Rates().ranked(tree, most)
    assert len(nodes) == min(most, len(tree) - 1)
    assert chances == sorted(chances, reverse=True)
    part = tree.part(nodes)
    assert texts(part) <= texts(tree)
    assert len(part) == 1 + len(nodes)


def test_of_siblings_one_is_right_at_most() -> None:
    _, chances = Rates().ranked(tree_of([1], [2], [3]), 3)
    assert abs(sum(chances) - 1) < 1e-9


def test_what_was_right_comes_first() -> None:
    rates = Rates()
    tree = TokenTree.of(9, [draft_of([1]), draft_of([2], 1)])
    for _ in range(5):
        learn(rates, tree, [2, 7])
    nodes, chances = rates.ranked(tree, 2)
    assert [tree.tokens[node] for node in nodes] == [2, 1]
    assert chances[0] > 0.8 > 0.3 > chances[1]


def test_one_that_does_not_branch_is_a_chain() -> None:
    assert tree_of([1, 2, 3], [1, 2]).is_chain
    assert not tree_of([1, 2], [1, 3]).is_chain
    assert TokenTree([4]).is_chain


def test_rows_that_do_not_branch_need_no_masks() -> None:
    tokens, branching = side_by_side([tree_of([1, 2]), tree_of([3, 4])])
    assert tokens == [[9, 1, 2], [9, 3, 4]]
    assert branching is None


def test_chains_are_filled_up_with_what_lies_no_further_than_their_first() -> None:
    tokens, branching = side_by_side([tree_of([1, 2]), tree_of([4])])
    assert tokens == [[9, 1, 2], [9, 4, 9]]
    assert branching is not None
    assert branching.depths.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert branching.ancestors[1].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_rows_are_filled_up_with_what_nobody_sees() -> None:
    tokens, branching = side_by_side([tree_of([1, 2], [3]), tree_of([4])])
    assert tokens == [[9, 1, 2, 3], [9, 4, 9, 9]]
    assert branching is not None
    assert branching.depths.tolist() == [[0, 1, 2, 1], [0, 1, 0, 0]]
    assert torch.equal(branching.ancestors[1, 2:], torch.eye(4, dtype=torch.bool)[2:])
    assert branching.ancestors[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_of_what_nothing_is_known_the_drafters_own_chances_count() -> None:
    nodes, chances = Rates().ranked(TokenTree.of(9, [draft_of([1]), draft_of([2], 1, 0.9)]), 2)
    assert nodes == [2, 1]
    assert chances == [0.9 / 1.5, 0.6 / 1.5]
