"""Suffix lookup against a search through this text and all before it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir.errors import SpecError
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.automaton import SuffixAutomaton
from tersor.passes.speculate.suffix import Suffix

few = st.lists(st.integers(0, 2), max_size=30)


def places(text: list[int], run: list[int]) -> list[int]:
    """Where in ``text`` something follows ``run``."""
    size = len(run)
    return [i + size for i in range(len(text) - size) if text[i : i + size] == run]


def longest_end(text: list[int], of: list[int]) -> int:
    return max((n for n in range(1, len(of) + 1) if places(text, of[-n:])), default=0)


@settings(max_examples=200)
@given(tokens=few)
def test_the_longest_end_that_stood_before_is_found_with_its_latest_place(tokens: list[int]) -> None:
    automaton = SuffixAutomaton()
    for count, token in enumerate(tokens, 1):
        automaton.extend([token])
        text = tokens[:count]
        length, place = automaton.repeated()
        assert length == longest_end(text, text)
        if length:
            assert place == max(places(text, text[-length:]))


@settings(max_examples=100)
@given(earlier=st.lists(few, max_size=3), tokens=few, most=st.integers(1, 5))
def test_guesses_are_what_followed_the_longest_match_anywhere(
    earlier: list[list[int]], tokens: list[int], most: int
) -> None:
    drafter = Suffix()
    for text in earlier:
        drafter.begin().extend(text)
    drafting = drafter.begin()
    drafting.extend(tokens)
    drafts = drafting.draft(most)
    for draft in drafts:
        here = draft.kinds[0] <= 12
        length = draft.kinds[0] - (0 if here else 12)
        texts = [[*tokens, *draft.tokens]] if here else earlier
        assert length == min(max(longest_end(text, tokens) for text in ([tokens] if here else earlier)), 12)
        assert any(
            text[place : place + len(draft.tokens)] == draft.tokens
            for text in texts
            for place in places(text, tokens[len(tokens) - length :])
        )
    assert bool(longest_end(tokens, tokens)) == any(draft.kinds[0] <= 12 for draft in drafts)


def test_a_text_that_is_asked_again_is_known_from_its_first_words_on() -> None:
    drafter = Suffix()
    text = list(range(100, 140))
    drafter.begin().extend(text)
    again = drafter.begin()
    again.extend(text[:3])
    assert [draft.tokens for draft in again.draft(8)] == [text[3:11]]


def test_texts_under_way_know_nothing_of_each_other() -> None:
    drafter = Suffix()
    one, other = drafter.begin(), drafter.begin()
    one.extend([1, 2, 3])
    other.extend([1, 2])
    assert other.draft(2) == []


def test_what_is_remembered_is_bounded() -> None:
    drafter = Suffix(remember=50)
    for start in range(0, 2000, 20):
        drafter.begin().extend(range(start, start + 20))
    drafter.begin()
    assert len(drafter._earlier.runs.text) <= 50 + 21


@pytest.mark.parametrize("option", ["shortest=0", "remember=-1"])
def test_options_that_make_no_sense_are_named(option: str) -> None:
    with pytest.raises(SpecError, match=option):
        parse_spec(f"speculate:drafter=suffix,{option}")
