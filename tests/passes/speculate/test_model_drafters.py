"""Drafters that guess with models: the model's own layers, several at once, and models beside it."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LLAMA, huggingface
from decoders import DECODERS, PROMPTS, decoder_on, decoder_program
from guesses import CHEAP, Eager, guessing
from hypothesis import given as given_by
from hypothesis import strategies as st
from torch import Tensor

import tersor
from tersor.ir import archive
from tersor.ir.capture import capture
from tersor.ir.errors import InputError, RefusedError, SpecError
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec
from tersor.passes.speculate import draft_loop
from tersor.passes.speculate.draft_loop import Balance, ModelDrafting, Tally
from tersor.passes.speculate.drafter import Drafter
from tersor.passes.speculate.easyspec import EasySpec
from tersor.passes.speculate.second_model import SecondModel
from tersor.passes.speculate.self_draft import SelfDraft
from tersor.passes.speculate.several import Several
from tersor.passes.speculate.triforce import TriForce, chosen_tokens
from tersor.runtime import generation
from tersor.runtime.decoder import Decoder
from tersor.runtime.draft_models import DraftModels, Place
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

DRAFTERS: list[Drafter] = [
    SelfDraft(exits=(1,)),
    SecondModel(),
    SecondModel(exits=(1, 2)),
    EasySpec(),
    TriForce(budget=4, chunk=2, refresh=3),
    TriForce(budget=4, chunk=2, refresh=3, under=1),
    Several(of=("suffix", "self", "model")),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model of the same vocabulary, with a window."""
    folder = tmp_path_factory.mktemp("small")
    model = huggingface("MistralConfig", "MistralForCausalLM", **dict(LLAMA, sliding_window=5))()
    archive.save(run(capture(model), ["kv-cache"])[0], folder)
    return folder


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds are pretended ones here, in which no draft of a real machine costs anything.
    monkeypatch.setattr(Decoder, "cost_curve", CHEAP)
    monkeypatch.setattr(generation, "Policy", Eager)
    # How long a draft takes is a matter of chance, the first of a process above all.
    monkeypatch.setattr(draft_loop, "perf_counter", lambda: 0.0)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.1, seed=3)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("drafter", DRAFTERS, ids=str)
@pytest.mark.parametrize("name", ["gemma3", "gpt2", "mixtral"])
def test_tokens_are_those_without_guesses(name: str, drafter: Drafter, sampling: Sampling) -> None:
    decoder = decoder_on(name, "torch")
    plain = generate(decoder, PROMPTS, Stopping(24), sampling)
    given = guessing(decoder, drafter)
    for batch in (1, 3):
        counts = Statistics()
        found = generate(
            decoder, PROMPTS, Stopping(24), sampling, None, statistics=counts, batch=batch, **given
        )
        assert found == plain
        assert counts.guesses


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.1, seed=3)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_model_that_agrees_is_always_right(name: str, sampling: Sampling) -> None:
    """The model itself, over a cache of its own, says and draws what it says."""
    decoder = decoder_on(name, "torch")
    counts = Statistics()
    plain = generate(decoder, [PROMPTS[2]], Stopping(24), sampling)
    given = guessing(decoder, SecondModel())
    assert generate(decoder, [PROMPTS[2]], Stopping(24), sampling, None, statistics=counts, **given) == plain
    assert counts.accepted == counts.drafted
    assert counts.steps < 12


@pytest.mark.parametrize("under", [0, 1])
@pytest.mark.parametrize("name", DECODERS)
def test_with_room_for_all_tokens_the_sparse_cache_is_the_whole_one(name: str, under: int) -> None:
    decoder = decoder_on(name, "torch")
    counts = Statistics()
    plain = generate(decoder, [PROMPTS[2]], Stopping(24), Sampling())
    given = guessing(decoder, TriForce(budget=64, refresh=5, under=under))
    assert (
        generate(decoder, [PROMPTS[2]], Stopping(24), Sampling(), None, statistics=counts, **given) == plain
    )
    assert counts.accepted == counts.drafted
    assert counts.steps < 12


@given_by(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 5),
    chunks=st.integers(1, 6),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_chunks_are_chosen_by_their_mean_keys(
    tokens: int, chunk: int, chunks: int, groups: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = (
        torch.randn(2 * groups, 4, generator=generator),
        torch.randn(2, tokens, 4, generator=generator),
    )
    found = chosen_tokens(query, key, chunk, chunk * chunks).tolist()
    whole = [list(range(start, start + chunk)) for start in range(0, tokens - chunk + 1, chunk)]

    def liked(places: list[int]) -> float:
        return sum(float(query[h] @ key[h // groups, places].mean(0)) for h in range(2 * groups))

    best = sorted(whole, key=liked, reverse=True)[:chunks]
    assert found == sorted([t for places in best for t in places] + list(range(len(whole) * chunk, tokens)))


def test_another_model_guesses(small: Path) -> None:
    decoder = decoder_on("llama", "onnx")
    plain = generate(decoder, PROMPTS, Stopping(24), Sampling())
    for drafter in (SecondModel(str(small)), EasySpec(str(small)), SecondModel(str(small), exits=(1,))):
        counts = Statistics()
        given = guessing(decoder, drafter)
        assert generate(decoder, PROMPTS, Stopping(24), Sampling(), None, statistics=counts, **given) == plain
        assert counts.guesses


@pytest.mark.parametrize("keep", [True, False])
def test_a_model_of_its_own_reads_what_its_cache_does_not_hold(small: Path, keep: bool) -> None:
    """Right guesses and wrong ones ahead, windows that move: a row says what a fresh one says."""
    decoder = decoder_on("mistral", "torch")
    models = SecondModel(str(small)).models(decoder.program)
    rows = lambda: DraftModels(models, decoder.lower).rows(Place(decoder.new_cache(1)))["whole"]  # noqa: E731
    row, text = rows(), list(PROMPTS[2])
    for right in (0, 2, 1, 3, 0):
        assert torch.allclose(row.start(text, 4, keep), rows().start(text, 4), atol=1e-5)
        guesses = [7, 8, 9]
        for place, token in enumerate(guesses, 1):
            assert torch.allclose(row.next(token), rows().start([*text, *guesses[:place]], 4), atol=1e-5)
        text += [*guesses[:right], 30 + right]


def test_layers_that_draft_write_over_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts of the cache of the model that checks is the same after a draft."""
    decoder = decoder_on("gemma3", "torch")
    models = SelfDraft(exits=(2,)).models(decoder.program)
    cache = decoder.new_cache(1)
    decoder.prefill(cache, 0, PROMPTS[2])
    before = decoder.try_step(cache, [[5, 6, 7]]).clone()
    row = DraftModels(models, decoder.lower).rows(Place(cache))["2"]
    row.start([*PROMPTS[2], 5], 8)
    for token in (90, 91, 92, 93):
        row.next(token)
    assert torch.equal(decoder.try_step(cache, [[5, 6, 7]]), before)


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


def test_a_third_of_the_layers_drafts_by_default() -> None:
    program = run(decoder_program("gemma3"), ["kv-cache"])[0]
    assert list(SelfDraft().models(program)) == ["1"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("speculate:drafter=self,exits=0", "an exit is after 1 layer or more"),
        ("speculate:drafter=model,exits=0+1", "an exit is after 1 layer or more"),
        ("speculate:drafter=triforce,chunk=8,budget=4", "chunk=8 must be 1 or more and at most budget=4"),
        ("speculate:drafter=easyspec,group=1", "layers that run at once are 2 or more"),
    ],
)
def test_options_that_make_no_sense_are_named(spec: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_spec(spec)


def test_models_that_cannot_guess_are_named(tmp_path: Path) -> None:
    llama = decoder_program("llama")
    missing = r"there is no model in 'nowhere' \(from the working folder, .*\) to guess with"
    with pytest.raises(InputError, match=missing):
        run(llama, ["kv-cache", "speculate:drafter=model,path=nowhere"])
    archive.save(llama, tmp_path / "bare")
    with pytest.raises(InputError, match="keeps no cache: convert it with -p kv-cache"):
        run(llama, ["kv-cache", f"speculate:drafter=easyspec,path={tmp_path / 'bare'}"])
    other = huggingface("LlamaConfig", "LlamaForCausalLM", **dict(LLAMA, vocab_size=77))()
    archive.save(run(capture(other), ["kv-cache"])[0], tmp_path / "other")
    with pytest.raises(InputError, match="has a vocabulary of 77 tokens, and this one of 120"):
        run(llama, ["kv-cache", f"speculate:drafter=model,path={tmp_path / 'other'}"])


def test_an_exit_behind_the_last_layer_is_refused() -> None:
    with pytest.raises(RefusedError, match="are not of the 2"):
        run(decoder_program("llama"), ["kv-cache", "speculate:drafter=self,exits=5"])


def test_the_front_door(tmp_path: Path) -> None:
    model = huggingface("LlamaConfig", "LlamaForCausalLM", **LLAMA)()
    plain = tersor.optimize_model(model, ["kv-cache"], "torch")
    fast = tersor.optimize_model(model, ["kv-cache", "speculate:drafter=self,exits=1"], "torch")
    fast.save(tmp_path / "out")
    ids = torch.tensor([PROMPTS[1]])
    assert torch.equal(
        tersor.load(tmp_path / "out").generate(ids, max_new_tokens=12), plain.generate(ids, max_new_tokens=12)
    )
