"""Drafters that guess with models: the model's own layers, several at once, and models beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LLAMA, huggingface
from decoders import DECODERS, PROMPTS, decoder_on, decoder_program
from guesses import CHEAP, Eager, guessing
from hypothesis import given as given_by
from hypothesis import strategies as st

import tersor
from tersor.ir import archive
from tersor.ir.capture import capture
from tersor.ir.errors import InputError, RefusedError, SpecError
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec
from tersor.passes.speculate import draft_loop
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


def test_a_third_of_the_layers_drafts_by_default() -> None:
    program = run(decoder_program("gemma3"), ["kv-cache"])[0]
    assert list(SelfDraft().models(program)) == ["1"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("speculate:drafter=self,exits=0", "an exit is after 1 layer or more"),
        ("speculate:drafter=model,exits=0+1", "an exit is after 1 layer or more"),
        ("speculate:drafter=self,exits=1+2+1", r"exits=1\+2\+1 names an exit twice"),
        ("speculate:drafter=triforce,chunk=8,budget=4", "chunk=8 must be 1 or more and at most budget=4"),
        ("speculate:drafter=easyspec,group=1", "layers that run at once are 2 or more"),
    ],
)
def test_options_that_make_no_sense_are_named(spec: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse_spec(spec)


def test_a_layer_that_is_not_there_is_named_and_no_other() -> None:
    with pytest.raises(RefusedError) as found:
        SelfDraft(exits=(200_000,)).models(run(decoder_program("llama"), ["kv-cache"])[0])
    assert str(found.value) == "layer 2 is asked for, and the model has 2 (from 0)"


@pytest.mark.parametrize("kind", [SecondModel, EasySpec])
def test_a_folder_is_found_from_wherever_it_is_run(
    kind: type[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drafter = kind("draft")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert drafter.path == str(tmp_path / "draft")
    assert kind("draft").path == str(tmp_path / "elsewhere" / "draft")
    among = Several(of=(kind.name,), given=(f"{kind.name}.path:draft",))
    assert among.given == (f"{kind.name}.path:{tmp_path / 'elsewhere' / 'draft'}",)
    assert kind().path == ""


def test_models_that_cannot_guess_are_named(tmp_path: Path) -> None:
    llama = decoder_program("llama")
    missing = f"there is no model in '{re.escape(str(Path.cwd() / 'nowhere'))}' to guess with"
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
    with pytest.raises(RefusedError, match="the model has 2"):
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
