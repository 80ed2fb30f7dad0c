"""Token Recycling: what was likely behind a token is guessed behind it, as a tree, across texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tersor.ir.errors import SpecError
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.likeliest import likeliest
from tersor.passes.speculate.recycle import Recycle
from tersor.runtime.tree import TokenTree


def scores(*ranked: list[int], vocabulary: int = 20) -> Tensor:
    """Logits ``[len(ranked), vocabulary]`` with these tokens likeliest, in order."""
    logits = torch.full((len(ranked), vocabulary), -1.0)
    for row, tokens in enumerate(ranked):
        for place, token in enumerate(tokens):
            logits[row, token] = 10.0 - place
    return logits


def test_paths_are_the_likeliest_tokens_behind_each_other() -> None:
    drafting = Recycle(candidates=2, deepest=2).begin()
    drafting.observe([1, 2, 3], scores([2, 3], [4, 5], [1, 6]))
    drafting.extend([1])
    found = {(tuple(d.tokens), tuple(d.kinds)) for d in drafting.draft(5)}
    assert found == {((2, 4), (0, 0)), ((2, 5), (0, 1)), ((3, 1), (1, 0))}
    assert {tuple(d.tokens) for d in drafting.draft(1)} == {(2,), (3,)}


@pytest.mark.parametrize("candidates", [1, 4, 5, 8])
def test_so_many_are_guessed_as_are_kept(candidates: int) -> None:
    drafting = Recycle(candidates=candidates).begin()
    drafting.observe(list(range(12)), scores(*([(token + n) % 12 for n in range(10)] for token in range(12))))
    drafting.extend([3])
    tree = TokenTree.of(3, drafting.draft(60))
    assert set(tree.children[0]) == {3 + n for n in range(candidates)}
    assert tree.guesses <= 64


def test_what_is_said_last_counts_and_other_texts_begin_with_it() -> None:
    drafter = Recycle(candidates=1, deepest=1)
    first = drafter.begin()
    first.observe([1, 1], scores([2], [3]))
    second = drafter.begin()
    second.extend([1])
    assert [d.tokens for d in second.draft(1)] == [[3]]
    first.observe([1], scores([4]))
    assert [d.tokens for d in second.draft(1)] == [[4]]


def test_what_did_follow_in_a_prompt_comes_first() -> None:
    drafting = Recycle(candidates=2, deepest=1).begin()
    drafting.observe([1], scores([7, 8]))
    drafting.extend([1, 8, 1, 9, 1])
    assert [d.tokens for d in drafting.draft(1)] == [[9], [8]]


def test_with_nothing_to_go_by_nothing_is_guessed() -> None:
    drafting = Recycle().begin()
    assert drafting.draft(5) == []
    drafting.extend([3])
    assert drafting.draft(5) == []


@given(
    tokens=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    seen=st.lists(st.tuples(st.integers(0, 5), st.permutations(range(6))), max_size=6),
    most=st.integers(1, 8),
    deepest=st.integers(1, 4),
)
def test_every_path_is_what_was_kept_and_siblings_differ(
    tokens: list[int], seen: list[tuple[int, list[int]]], most: int, deepest: int
) -> None:
    drafting = Recycle(candidates=3, deepest=deepest).begin()
    drafting.extend(tokens)
    for token, ranked in seen:
        drafting.observe([token], scores(list(ranked), vocabulary=6))
    drafts = drafting.draft(most)
    paths = {tuple(d.tokens) for d in drafts}
    assert len(paths) == len(drafts)
    for draft in drafts:
        assert 1 <= len(draft.tokens) <= min(most, deepest)
        assert len(draft.kinds) == len(draft.tokens)
        assert all(0 <= kind < 3 for kind in draft.kinds)
    latest = dict(seen)
    if latest.get(tokens[-1]) is not None:
        assert {path[0] for path in paths} <= set(latest[tokens[-1]][:3])
        assert latest[tokens[-1]][0] in {path[0] for path in paths}


@given(st.integers(1, 2000), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_the_likeliest_are_found_by_blocks(size: int, count: int, seed: int, equal: bool) -> None:
    drawn = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    row = np.round(drawn) if equal else drawn
    found = likeliest(row, count)
    assert len(set(found)) == len(found) == min(count, size)
    assert [row[i] for i in found] == sorted(row, reverse=True)[:count]


@pytest.mark.parametrize("option", ["candidates=0", "deepest=0"])
def test_its_options_must_be_counts(option: str) -> None:
    with pytest.raises(SpecError, match="must be 1 or more"):
        parse_spec(f"speculate:drafter=recycle,{option}")
