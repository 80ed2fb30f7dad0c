"""What the section on tokens says of sides whose tokens are known."""

from __future__ import annotations

import pytest
from decoders import decoder_on

from benchmarks.decoding_sides import Ours
from benchmarks.identity import _SLOW, PLAIN, Found, compare, idle, section
from examples.prompts import Prompt
from tersor.runtime.divergence import Divergence

TIE, BUG = Divergence(7, (5, 6), 1e-5, 1e-4, 1e-4), Divergence(3, (5, 6), 0.5, 1e-4, 1e-4)


def test_ties_are_counted_and_listed_and_what_is_none_is_said() -> None:
    found = [
        Found("plain", 1),
        Found("plain", 4, {2: TIE}),
        Found("ngram", 1, {2: TIE}, 400, 100),
        Found("ngram", 4, {0: BUG}, 300, 90),
    ]
    text = section(found, 6, 128)
    assert "| plain | 6 of 6 |  | 5 of 6, 1 at ties |  |" in text
    assert "| ngram | 5 of 6, 1 at ties | 100 of 400 | 5 of 6, 1 WRONG | 90 of 300 |" in text
    assert f"Ties: prompt 2: {TIE}." in text
    assert f"Parted elsewhere: ngram, 4 at a time, prompt 0: {BUG}." in text
    assert "Parted elsewhere: nowhere." in section(found[:2], 6, 128)


def test_drafters_whose_guesses_are_never_right_are_named() -> None:
    found = [Found("plain", 1), Found("ngram", 1, {}, 400, 100), Found("easyspec", 4, {}, 12, 0)]
    assert idle(found) == ["easyspec, 4 at a time: none of 12 guesses was right"]


@pytest.mark.parametrize("name", [PLAIN, "ngram", "model,exits=1"])
@pytest.mark.parametrize("rows", [1, 2])
def test_sides_guess_where_steps_are_said_to_be_slow(name: str, rows: int) -> None:
    decoder = decoder_on("llama", "torch")
    peer = Ours("peer", decoder)
    chosen = [Prompt("prose", [5, 6, 7, 5, 6, 7, 5, 6]), Prompt("code", [9, 8, 9, 8])]
    expected = [peer.run(prompt.tokens, 12) for prompt in chosen]
    side = Ours(name, decoder, None if name == PLAIN else name, curve=None if name == PLAIN else _SLOW)
    found = compare(chosen, expected, side, rows, peer)  # type: ignore[arg-type]
    assert not found.parted
    assert bool(found.guesses) == (name != PLAIN)
