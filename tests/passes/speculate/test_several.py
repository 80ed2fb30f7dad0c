"""Several drafters: each is told the text, each guesses, and their kinds are told apart."""

from __future__ import annotations

import pytest
import torch

from tersor.ir.errors import SpecError
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.ngram import NGram
from tersor.passes.speculate.recycle import Recycle
from tersor.passes.speculate.several import Several
from tersor.passes.speculate.suffix import Suffix

TEXT = [5, 6, 7, 8, 9, 5, 6, 7]


def test_what_each_guesses_is_there_under_kinds_of_their_own() -> None:
    together, alone = (
        Several(of=("ngram", "suffix", "recycle")).begin(),
        [NGram().begin(), Suffix().begin(), Recycle().begin()],
    )
    for drafting in (together, *alone):
        drafting.extend(TEXT)
        drafting.observe([7, 3], torch.eye(12)[[9, 4]])
    found = together.draft(3)
    assert [draft.tokens for draft in found] == [draft.tokens for one in alone for draft in one.draft(3)]
    kinds = [{kind for draft in one.draft(3) for kind in draft.kinds} for one in alone]
    assert len({kind for draft in found for kind in draft.kinds}) == sum(map(len, kinds))


def test_what_one_remembers_it_remembers_among_others() -> None:
    drafter = Several(of=("suffix",))
    drafter.begin().extend(TEXT)
    again = drafter.begin()
    again.extend([8])
    assert [draft.tokens for draft in again.draft(2)] == [[9, 5]]


@pytest.mark.parametrize("of", ["several", "nobody", "ngram+nobody"])
def test_a_drafter_that_is_none_is_named(of: str) -> None:
    with pytest.raises(SpecError, match=r"is none of the drafters .*ngram, .*recycle, .*suffix"):
        parse_spec(f"speculate:drafter=several,of={of}")
