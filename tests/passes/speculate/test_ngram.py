"""Prompt lookup against a search through the whole sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir.errors import SpecError
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.ngram import NGram

few = st.lists(st.integers(0, 2), max_size=25)


def searched(tokens: list[int], shortest: int, longest: int, most: int) -> tuple[list[int], int] | None:
    """The latest earlier place of the longest end of ``tokens``, and what follows it, over the end too."""
    for size in range(longest, shortest - 1, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if size <= len(tokens) and tokens[start : start + size] == tokens[len(tokens) - size :]:
                guesses = list(tokens)
                for place in range(start + size, start + size + most):
                    guesses.append(guesses[place])
                return guesses[len(tokens) :], size
    return None


@given(
    tokens=few,
    shortest=st.integers(1, 2),
    more=st.integers(0, 2),
    most=st.integers(1, 6),
    cut=st.integers(0, 25),
)
def test_it_guesses_what_a_search_finds(
    tokens: list[int], shortest: int, more: int, most: int, cut: int
) -> None:
    drafting = NGram(longest=shortest + more, shortest=shortest).begin()
    drafting.extend(tokens[:cut])
    drafting.extend(tokens[cut:])
    found = [(draft.tokens, draft.kinds) for draft in drafting.draft(most)]
    expected = searched(tokens, shortest, shortest + more, most)
    assert found == ([] if expected is None else [(expected[0], [expected[1]] * most)])


def test_sequences_know_nothing_of_each_other() -> None:
    drafter = NGram()
    drafter.begin().extend([1, 2, 3, 1])
    assert drafter.begin().draft(3) == []


def test_its_range_must_be_one() -> None:
    with pytest.raises(SpecError, match="no range from 1 up"):
        parse_spec("speculate:drafter=ngram,shortest=3,longest=2")


def test_runs_longer_than_are_noted_are_refused() -> None:
    with pytest.raises(ValueError, match="drafter=suffix looks for runs of any length"):
        NGram(longest=10**9)
