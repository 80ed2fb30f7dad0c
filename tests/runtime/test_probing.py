"""Which prompt tokens are fed: those by which the next step gains most, and none where nothing comes of them."""

from __future__ import annotations

import pytest
import torch
from guesses import CHEAP, draft_of
from hypothesis import given
from hypothesis import strategies as st

from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.probing import Gains, ranked_probes
from tersor.runtime.speculation import Policy, Rates, Statistics
from tersor.runtime.tree import TokenTree, side_by_side


def tree_of(*chains: list[int]) -> TokenTree:
    return TokenTree.of(9, [draft_of(tokens, probed=True) for tokens in chains])


def test_probes_are_seen_by_no_other_and_are_no_guesses() -> None:
    tree = tree_of([1, 2], [3])
    for node in (0, 1, 0):
        tree.probe(node)
    assert tree.tokens == [9, 1, 2, 3, 9, 1, 9]
    assert tree.depths == [0, 1, 2, 1, 1, 2, 2]
    assert tree.probes == {0: [4, 6], 1: [5]}
    assert (tree.guesses, len(tree)) == (3, 7)
    assert all(child < 4 for children in tree.children for child in children.values())
    tokens, branching = side_by_side([tree, tree_of([1])])
    assert [len(row) for row in tokens] == [7, 7]
    assert branching is not None
    assert branching.probes is not None
    assert branching.probes.tolist() == [[0, 0, 0, 0, 1, 1, 2], [0] * 7]
    assert branching.ancestors[0, 4:].int().tolist() == [
        [1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 0, 1],
    ]


def test_a_probe_behind_a_chain_is_no_token_of_it() -> None:
    tree = TokenTree.of(9, [])
    tree.probe(0)
    _, branching = side_by_side([tree])
    assert branching is not None
    counts = Statistics()
    counts.count(tree, 0)
    assert (counts.guesses, counts.probes, counts.drafted) == (0, 1, [])
    assert "0 guesses and 1 prompt tokens" in str(counts)


def rounded(worth: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """In one order, without those that only rounding is worth something."""
    return sorted((round(gain, 9), node) for gain, node in worth if gain > 1e-9)


@given(
    chains=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=5),
    deepest=st.integers(0, 4),
    each=st.integers(1, 3),
)
def test_what_each_is_worth_is_how_likely_its_node_is_the_last_right_one(
    chains: list[list[int]], deepest: int, each: int
) -> None:
    whole = tree_of(*chains)
    nodes, chances = Rates().ranked(whole, 5)
    tree, gains = whole.part(nodes), Gains(each)
    expected = []
    for node in range(len(tree)):
        right = 1.0 if node == 0 else chances[node - 1]
        last = right - sum(chances[child - 1] for child in tree.children[node].values())
        expected += [
            (last * gains.of(probe), node)
            for probe in range(each)
            if last > 0 and tree.depths[node] + probe + 1 <= deepest
        ]
    found = ranked_probes(tree, chances, gains, deepest, each)
    assert rounded(found) == rounded(expected)
    assert [gain for gain, _ in found] == sorted((gain for gain, _ in found), reverse=True)


def test_what_guesses_by_probes_give_is_learned_and_forgotten() -> None:
    gains, tree = Gains(2), tree_of([1, 2], [3])
    cost = lambda guesses: 0.01 * guesses  # noqa: E731
    before = [gains.of(0), gains.of(1)]
    for _ in range(200):
        gains.learn(2, tree, [0, 1, 2], cost)
    assert gains.of(0) == pytest.approx(1 - 0.02, abs=0.02)
    assert gains.of(1) == pytest.approx(1 - 0.01, abs=0.02)
    for _ in range(200):
        gains.learn(1, tree, [0], cost)
    assert gains.of(0) < 0.15
    assert gains.of(0) > -0.03
    for _ in range(500):
        gains.learn(0, tree, [0], cost)
    assert [gains.of(0), gains.of(1)] == pytest.approx(before, abs=0.1)


def test_guesses_that_another_drafter_made_too_are_no_gain() -> None:
    gains = Gains(1)
    tree = TokenTree.of(9, [draft_of([1]), draft_of([1], probed=True)])
    for _ in range(50):
        gains.learn(1, tree, [0, 1], lambda guesses: 0.0)
    assert gains.of(0) < 0.1


def test_probes_are_fed_as_long_as_they_pay() -> None:
    policy = Policy(CHEAP)
    assert policy.probes(0, 1.0, [[0.4, 0.2, 0.001]]) == 2
    assert policy.probes(0, 1.0, [[]]) == 0
    assert Policy(CostCurve((1, 2, 3), (1.0, 2.0, 3.0))).probes(0, 1.0, [[0.4, 0.2]]) == 0
    # Rows share a step: what one gains pays for places that the other does not use.
    assert policy.probes(0, 2.0, [[0.4], []]) == 1
    for _ in range(50):
        policy.learn(1, 2, 1, 0.5)
    assert policy.probes(0, 1.0, [[0.4, 0.2]]) == 0


def test_of_a_tree_that_is_cut_it_is_known_what_probes_gave() -> None:
    tree = TokenTree.of(9, [draft_of([1, 2], probed=True), draft_of([1])])
    assert tree.probed == [False, False, True]
    assert tree.part([1, 2]).probed == [False, False, True]
    assert torch.equal(tree.part([1, 2]).paths(), tree.paths())
