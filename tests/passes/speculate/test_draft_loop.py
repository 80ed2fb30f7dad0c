"""How long a model guesses, which of several does, and when none does."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.passes.speculate import draft_loop
from tersor.passes.speculate.draft_loop import Balance, ModelDrafting, Tally
from tersor.passes.speculate.several import Several


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # How long a draft takes is a matter of chance, the first of a process above all.
    monkeypatch.setattr(draft_loop, "perf_counter", lambda: 0.0)


class _Row:
    """Says one token, as sure as it is told."""

    longest, seconds = None, 0.0

    def unread(self, text: Any) -> int:
        return 0

    def start(self, text: Any, most: int, keep: bool = True) -> Tensor:
        return torch.tensor([0.0, 3.0, 0.0])

    def next(self, token: int) -> Tensor:
        return torch.tensor([0.0, 3.0, 0.0])


class _Pays:
    """An outlook in which steps cost as much as drafts."""

    plain = 1e-9

    def choose(self, ahead: Any, logits: Tensor) -> int:
        return int(logits.argmax())

    def noisy(self, ahead: int, tokens: Any, scores: Any) -> list[float]:
        return list(scores)

    def worth(self, draft: Any, seconds: float) -> bool:
        return len(draft.tokens) < 2


def test_a_model_that_costs_more_than_it_saves_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(draft_loop, "perf_counter", lambda: float(next(seconds)))
    drafting = ModelDrafting({"a": _Row()}, {"a": Balance()})
    found = []
    for _ in range(200):
        found.append(bool(drafting.draft(5, _Pays())))
        drafting.extend([2])
    assert found[0]
    assert sum(found) < 20


def test_of_a_text_on_which_a_model_is_always_wrong_the_next_does_not_suffer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = count(step=0.1)
    monkeypatch.setattr(draft_loop, "perf_counter", lambda: next(clock))
    balances = {"a": Balance()}
    outlook = _Pays()
    outlook.plain = 1.0

    def drafts(token: int, tokens: int) -> int:
        drafting = ModelDrafting({"a": _Row()}, balances)
        found = 0
        for _ in range(tokens):
            found += bool(drafting.draft(5, outlook))
            drafting.extend([token])
        return found

    assert drafts(2, 3000) < 200
    assert drafts(1, 400) == 400


def test_the_model_is_used_that_gives_most_tokens_a_second() -> None:
    """Of two that take as long, the one that is right; its guesses have kinds of their own."""
    balances = {"a": Balance(1e-12, Tally(9, 0)), "b": Balance(1e-12, Tally(9, 18))}
    drafting = ModelDrafting({"a": _Row(), "b": _Row()}, balances)
    (draft,) = drafting.draft(5, _Pays())
    assert draft.tokens == [1, 1]
    assert draft.kinds == [19, 19]
    assert draft.chances[0] == pytest.approx(torch.softmax(torch.tensor([0.0, 3.0, 0.0]), 0)[1].item())
    drafting.extend([1, 2])
    drafting.draft(5, _Pays())
    assert balances["b"].tally.mean(0.0, 0.0) < 2.0
    assert balances["a"] == Balance(1e-12, Tally(9, 0))


class _Knows(_Row):
    """Says what follows, as long as the text goes on as ``knows``."""

    def __init__(self, knows: list[int]) -> None:
        self.knows, self.place = knows, 0

    def start(self, text: Any, most: int, keep: bool = True) -> Tensor:
        self.place = len(text)
        return self._said()

    def next(self, token: int) -> Tensor:
        self.place += 1
        return self._said()

    def _said(self) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self.knows[self.place]), 5) * 3.0


def _models_of(drafting: ModelDrafting, text: list[int], name_of: dict[int, str]) -> list[str]:
    """Which model guessed at each token of a text."""
    found = []
    for token in text:
        (draft,) = drafting.draft(5, _Pays())
        found.append(name_of[draft.kinds[0] // 10])
        drafting.extend([token])
    return found


def test_of_several_models_all_are_tried_and_each_text_has_the_one_that_is_right_there() -> None:
    ones, twos = [1] * 60, [2] * 60
    balances: dict[str, Balance] = {"a": Balance(), "b": Balance()}
    for text, right in ((ones, "a"), (twos, "b"), (ones, "a"), (twos, "b")):
        drafting = ModelDrafting({"a": _Knows(ones), "b": _Knows(twos)}, balances)
        found = _models_of(drafting, text[:40], {0: "a", 1: "b"})
        assert set(found[-20:]) == {right}


def test_several_drafters_are_each_told_of_their_own_guesses() -> None:
    """What one was right about says nothing of another whose kinds have the same numbers."""
    told = []

    class Told(_Pays):
        def worth(self, draft: Any, seconds: float) -> bool:
            told.append(list(draft.kinds))
            return len(draft.tokens) < 2

    several = Several(of=("ngram", "self"))
    drafting = several.begin({"self.1": _Row()})
    drafting.extend([3, 4])
    (draft,) = drafting.draft(5, Told())
    assert draft.kinds == [1009, 1009]
    assert told == [[], [1009], [1009, 1009]]


def test_a_model_that_takes_about_as_long_as_a_plain_step_is_not_begun_with() -> None:
    """By chance it seems faster at times; to read a long text for that is a loss."""

    class Worth(_Pays):
        plain = 1.0

        def worth(self, draft: Any, seconds: float) -> bool:
            return seconds < self.plain

    for seconds, begins in ((0.95, False), (0.7, True)):
        drafting = ModelDrafting({"a": _Row()}, {"a": Balance(seconds)})
        assert bool(drafting.draft(5, Worth())) == begins


def test_a_long_text_is_not_read_by_a_model_that_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts are tried all the same: of each a model may be right anew."""
    now = [0.0]
    monkeypatch.setattr(draft_loop, "perf_counter", lambda: now[0])

    class Reading(_Row):
        def __init__(self) -> None:
            self.read = 0

        def unread(self, text: Any) -> int:
            return len(text) - self.read

        def start(self, text: Any, most: int, keep: bool = True) -> Tensor:
            now[0] += 0.1 * self.unread(text) + 1
            self.read = len(text)
            return super().start(text, most)

    outlook = _Pays()
    outlook.plain = 2.0

    def drafts(tokens: int, follows: int) -> int:
        drafting = ModelDrafting({"a": Reading()}, balances)
        drafting.extend([3] * tokens)
        found = 0
        for _ in range(20):
            found += bool(drafting.draft(5, outlook))
            drafting.extend([follows])
        return found

    balances = {"a": Balance()}
    assert drafts(100, follows=2) == 1
    assert drafts(100, follows=1) == 0
    assert drafts(4, follows=1) > 10
    # It has won more than it lost.
    assert drafts(100, follows=1)


def test_a_model_guesses_no_further_than_it_can_read() -> None:
    class Short(_Row):
        longest = 3

    drafting = ModelDrafting({"a": Short()}, {"a": Balance()})
    drafting.extend([1, 1])
    assert [draft.tokens for draft in drafting.draft(5)] == [[1]]
    drafting.extend([1])
    assert drafting.draft(5) == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_makes_no_numbers_guesses_no_more_and_others_do(value: float) -> None:
    class Broken(_Row):
        def start(self, text: Any, most: int, keep: bool = True) -> Tensor:
            return torch.tensor([0.0, value, 0.0])

    balances = {"a": Balance(1e-12, Tally(9, 45)), "b": Balance(1e-12, Tally(9, 18))}
    drafting = ModelDrafting({"a": Broken(), "b": _Row()}, balances)
    assert drafting.draft(5, _Pays()) == []
    drafting.extend([1])
    assert [draft.tokens for draft in drafting.draft(5, _Pays())] == [[1, 1]]
    alone = ModelDrafting({"a": Broken()}, {"a": balances["a"]})
    assert alone.draft(5, _Pays()) == []
