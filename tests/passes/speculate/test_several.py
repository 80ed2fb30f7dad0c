"""Several drafters: each is told the text, each guesses, and their kinds are told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersor.ir.errors import SpecError
from tersor.passes.spec import Spec, parse_spec
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


def test_single_ones_may_be_given_options() -> None:
    spec = "speculate:drafter=several,of=ngram+recycle,given=recycle.candidates:7+ngram.longest:2"
    speculate: Any = parse_spec(spec)
    assert speculate.drafter._drafters == [NGram(longest=2), Recycle(candidates=7)]
    assert parse_spec(str(Spec.of(speculate))) == speculate


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("suffix.shortest:2", "of=ngram names no 'suffix'"),
        ("ngram.depth:2", "ngram has no option 'depth'; it has longest, shortest"),
        ("ngram.longest:far", "longest is a whole number"),
        ("ngram.longest", "write drafter.option:value"),
        ("ngram.longest:9+ngram.longest:3", "says ngram.longest twice"),
        ("ngram:2", "write drafter.option:value"),
    ],
)
def test_options_of_single_ones_that_make_no_sense_are_named(given: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_spec(f"speculate:drafter=several,of=ngram,given={given}")


def test_a_drafter_named_twice_is_refused() -> None:
    with pytest.raises(SpecError, match="names 'ngram' twice"):
        parse_spec("speculate:drafter=several,of=ngram+suffix+ngram")


@pytest.mark.parametrize("of", ["several", "nobody", "ngram+nobody"])
def test_a_drafter_that_is_none_is_named(of: str) -> None:
    with pytest.raises(SpecError, match=r"is none of the drafters .*ngram, .*recycle, .*suffix"):
        parse_spec(f"speculate:drafter=several,of={of}")
