"""Suffix lookup against a search through this text and all others."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir.drafting import Draft
from tersor.ir.errors import SpecError
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.automaton import DEEPEST, End, SuffixAutomaton
from tersor.passes.speculate.suffix import _EVERYWHERE, Suffix

few = st.lists(st.integers(0, 2), max_size=30)
# Which text goes on, and with what.
turns = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=50)


def counted(texts: list[list[int]], run: list[int]) -> Counter[int]:
    """What followed ``run``, and how often."""
    size = len(run)
    return Counter(
        text[i + size] for text in texts for i in range(len(text) - size) if text[i : i + size] == run
    )


def longest_end(texts: list[list[int]], of: list[int]) -> int:
    """How long the longest end is, of those that are looked for, that something followed."""
    sizes = range(1, min(len(of), DEEPEST - 1) + 1)
    return max((n for n in sizes if counted(texts, of[-n:])), default=0)


def side_by_side(turns: list[tuple[int, int]]) -> tuple[SuffixAutomaton, list[list[int]], list[End]]:
    """Three texts that grow in turns."""
    automaton, texts, ends = SuffixAutomaton(), [[], [], []], [End(), End(), End()]  # type: ignore[var-annotated]
    for number, token in turns:
        automaton.append(ends[number], token)
        texts[number].append(token)
    return automaton, texts, ends


def likeliest(drafts: list[Draft]) -> list[int]:
    return max(drafts, key=lambda draft: draft.chances[0]).tokens


@settings(max_examples=200)
@given(turns=turns)
def test_every_end_of_texts_that_grow_side_by_side_knows_how_often_what_followed(
    turns: list[tuple[int, int]],
) -> None:
    automaton, texts, ends = side_by_side(turns)
    for text, end in zip(texts, ends, strict=True):
        state, length = automaton.followed(end.state, end.length)
        assert length == longest_end(texts, text)
        while length > 0:
            found = {token: times for token, times, _ in automaton.followers(state)}
            assert found == counted(texts, text[-length:])
            state, length = automaton.followed(end.state, length - 1)


@settings(max_examples=200)
@given(turns=turns)
def test_every_end_knows_what_followed_last(turns: list[tuple[int, int]]) -> None:
    automaton, texts, ends = side_by_side([])
    latest: dict[tuple[int, ...], int] = {}
    for number, token in turns:
        text = texts[number]
        for size in range(1, min(len(text), DEEPEST - 1) + 1):
            latest[tuple(text[-size:])] = token
        automaton.append(ends[number], token)
        text.append(token)
    for text, end in zip(texts, ends, strict=True):
        state, length = automaton.followed(end.state, end.length)
        if length:
            found = {when: token for token, _, when in automaton.followers(state)}
            assert found[max(found)] == latest[tuple(text[-length:])]


@given(turns=turns)
def test_runs_take_no_more_than_twice_as_many_states_as_there_are_tokens(
    turns: list[tuple[int, int]],
) -> None:
    automaton, _, _ = side_by_side(turns)
    assert len(automaton.links) <= 2 * len(turns) + 1
    assert len(automaton.links) == len(automaton.counts) == len(automaton.latest) == len(automaton.next)


def test_a_text_that_says_the_same_for_ever_takes_as_long_for_each_token() -> None:
    automaton, end = SuffixAutomaton(), End()
    for _ in range(3000):
        automaton.append(end, 5)
    # Every visit of a state is counted there.
    assert sum(automaton.counts) <= 3000 * DEEPEST
    assert len(automaton.links) == 3001


def test_a_text_that_is_said_again_takes_no_states() -> None:
    automaton = SuffixAutomaton()
    for _ in range(40):
        end = End()
        for token in range(50):
            automaton.append(end, token)
    assert len(automaton.links) == 51
    assert sum(automaton.counts) == 40 * 50


@settings(max_examples=100)
@given(earlier=st.lists(few, max_size=3), tokens=few, most=st.integers(1, 5))
def test_guesses_are_what_followed_the_longest_match(
    earlier: list[list[int]], tokens: list[int], most: int
) -> None:
    drafter = Suffix()
    for text in earlier:
        drafter.begin().extend(text)
    drafting = drafter.begin()
    drafting.extend(tokens)
    drafts = drafting.draft(most)
    own = [draft for draft in drafts if draft.kinds[0] < _EVERYWHERE]
    for some, texts in ((own, [tokens]), ([d for d in drafts if d not in own], [*earlier, tokens])):
        assert len({(tuple(d.tokens[:n])) for d in some for n in range(1, 1 + len(d.tokens))}) <= most
        for draft in some:
            run = tokens[len(tokens) - longest_end(texts, tokens) :]
            for token in draft.tokens:
                # Past the end of a text, it goes on as shorter runs do.
                run = run[len(run) - longest_end(texts, run) :]
                assert token in counted(texts, run)
                run = [*run, token]
    assert bool(own) == bool(longest_end([tokens], tokens))
    assert bool(drafts) == bool(longest_end([*earlier, tokens], tokens))


def test_what_followed_twenty_times_is_likelier_than_what_followed_once_at_last() -> None:
    drafting = Suffix().begin()
    for number, last in enumerate([7] * 20 + [8]):
        drafting.extend([1, 2, 3, last, 100 + number])
    drafting.extend([1, 2, 3])
    drafts = drafting.draft(16)
    assert likeliest(drafts)[0] == 7
    assert {draft.tokens[0] for draft in drafts} == {7, 8}


def test_the_newest_of_many_texts_is_guessed_too() -> None:
    drafter = Suffix()
    for last in [7] * 39 + [8]:
        drafter.begin().extend([*range(100, 120), last, 50 + last])
    again = drafter.begin()
    again.extend(range(100, 120))
    assert sorted(draft.tokens for draft in again.draft(4)) == [[7, 57], [8, 58]]


def test_what_goes_on_in_the_same_way_is_guessed_to_the_end() -> None:
    drafting = Suffix().begin()
    drafting.extend([1, 2, 3] * 3)
    assert [draft.tokens for draft in drafting.draft(10)] == [[1, 2, 3, 1, 2, 3, 1, 2, 3, 1]]


@pytest.mark.parametrize(("earlier", "guesses"), [([5, 6, 8], [[7]]), ([9, 5, 6, 8], [[7], [8]])])
def test_other_texts_are_asked_only_where_they_match_further(
    earlier: list[int], guesses: list[list[int]]
) -> None:
    drafter = Suffix()
    drafter.begin().extend(earlier)
    drafting = drafter.begin()
    drafting.extend([5, 6, 7, 9, 5, 6])
    assert [draft.tokens for draft in drafting.draft(1)] == guesses


def test_only_runs_that_are_long_enough_are_looked_for() -> None:
    drafter = Suffix(shortest=3)
    drafter.begin().extend([1, 2, 3, 4])
    drafting = drafter.begin()
    drafting.extend([2, 3])
    assert drafting.draft(4) == []
    again = drafter.begin()
    again.extend([1, 2, 3])
    assert [draft.tokens for draft in again.draft(4)] == [[4]]


def test_a_text_that_is_asked_again_is_known_from_its_first_words_on() -> None:
    drafter = Suffix()
    text = list(range(100, 140))
    drafter.begin().extend(text)
    again = drafter.begin()
    again.extend(text[:3])
    assert [draft.tokens for draft in again.draft(8)] == [text[3:11]]


def test_a_text_is_remembered_to_its_end_whenever_others_begin() -> None:
    drafter = Suffix()
    first = drafter.begin()
    first.extend([1, 2, 3])
    second = drafter.begin()
    first.extend([4, 5, 6, 7, 8])
    second.extend([9, 9])
    third = drafter.begin()
    third.extend([4, 5, 6])
    assert [draft.tokens for draft in third.draft(2)] == [[7, 8]]
    assert drafter._memory.runs.size == 3 + 5 + 2 + 3


def test_texts_under_way_know_of_each_other() -> None:
    drafter = Suffix()
    one, other = drafter.begin(), drafter.begin()
    other.extend([1, 2])
    one.extend([1, 2, 3])
    assert [draft.tokens for draft in other.draft(2)] == [[3]]


def test_runs_do_not_go_on_from_one_text_to_another() -> None:
    drafter = Suffix()
    drafter.begin().extend([1, 2])
    drafter.begin().extend([3, 4])
    drafting = drafter.begin()
    drafting.extend([1, 2])
    assert drafting.draft(2) == []


def test_nothing_is_remembered_where_nothing_may_be() -> None:
    drafter = Suffix(remember=0)
    drafter.begin().extend([1, 2, 3])
    drafting = drafter.begin()
    drafting.extend([1, 2])
    assert drafting.draft(2) == []


@pytest.mark.parametrize("together", [False, True])
def test_what_is_remembered_is_bounded(together: bool) -> None:
    drafter = Suffix(remember=50)
    texts = [drafter.begin() for _ in range(4)]
    for start in range(0, 1980, 20):
        for text in texts if together else [drafter.begin()]:
            text.extend(range(start, start + 20))
            assert drafter._memory.runs.size <= 50
    late = drafter.begin()
    late.extend([1974, 1975])
    assert [draft.tokens for draft in late.draft(3)] == [[1976, 1977, 1978]]


def test_a_text_goes_on_being_remembered_when_all_before_is_forgotten() -> None:
    drafter = Suffix(remember=30)
    text = drafter.begin()
    text.extend(range(40))
    again = drafter.begin()
    again.extend([32, 33])
    assert [draft.tokens for draft in again.draft(2)] == [[34, 35]]


@pytest.mark.parametrize("option", ["shortest=0", "remember=-1"])
def test_options_that_make_no_sense_are_named(option: str) -> None:
    with pytest.raises(SpecError, match=option):
        parse_spec(f"speculate:drafter=suffix,{option}")
