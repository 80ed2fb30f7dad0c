"""Lookup by tensor operators alone: the guesses of the drafters that look runs up, in torch and captured."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.ir.capture import capture
from tersor.passes.registry import find_methods
from tersor.passes.speculate.drafter import Drafter
from tersor.passes.speculate.lookup import Lookup
from tersor.passes.speculate.ngram import NGram
from tersor.passes.speculate.recycle import Recycle
from tersor.passes.speculate.several import Several
from tersor.passes.speculate.suffix import Suffix

texts = st.lists(st.integers(0, 2), min_size=1, max_size=25)


def guesses(module: torch.nn.Module, text: list[int]) -> list[int]:
    tokens, count = module(torch.tensor(text))
    return tokens[: int(count)].tolist()  # type: ignore[no-any-return]


@given(text=texts, shortest=st.integers(1, 2), more=st.integers(0, 2), most=st.integers(1, 6))
def test_it_guesses_what_the_drafter_does(text: list[int], shortest: int, more: int, most: int) -> None:
    drafter = NGram(longest=shortest + more, shortest=shortest)
    drafting = drafter.begin()
    drafting.extend(text)
    found = guesses(drafter.as_module(most), text)
    drafts = drafting.draft(most)
    assert len(found) == (min(most, {1: 1, 2: 4, 3: 8, 4: 16}[drafts[0].kinds[0]]) if drafts else 0)
    assert found == [token for draft in drafts for token in draft.tokens][: len(found)]


@given(text=texts, most=st.integers(1, 6))
def test_it_guesses_where_the_drafter_of_suffixes_does_on_a_first_text(text: list[int], most: int) -> None:
    drafting = Suffix(remember=0).begin()
    drafting.extend(text)
    # The module goes by the latest place, the drafter by counts too: what they guess may differ.
    assert bool(guesses(Suffix().as_module(most), text)) == bool(drafting.draft(most))


@pytest.mark.parametrize("text", [[5], [5, 5], [1, 2, 3, 1, 2], list(range(40)) * 2])
def test_captured_it_is_the_same_for_texts_of_any_length(text: list[int]) -> None:
    module = Lookup(1, 4, 8)
    program = capture(module, {"tokens": torch.tensor([5, 6, 7, 5, 6])}, dynamic={"tokens": {0: "text"}})
    assert program.ranges["text"] == (1, None)
    tokens, count = program(torch.tensor(text))
    assert tokens[: int(count)].tolist() == guesses(module, text)


def test_who_guesses_by_more_than_the_text_has_no_such_form() -> None:
    assert Recycle().as_module(8) is None
    assert isinstance(Several().as_module(8), Lookup)
    assert Several(of=("recycle",)).as_module(8) is None
    forms = [method().as_module(3) for method in find_methods(Drafter).values()]
    assert sum(form is not None for form in forms) >= 3
