"""Guesses by prompt tokens: whatever they are, the tokens are the model's own."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import DECODERS, PROMPTS, decoder_on, decoder_program
from guesses import CHEAP, Eager, guessing
from safetensors.torch import save_file
from torch import Tensor

import tersor
from tersor.ir.drafting import Greedily
from tersor.ir.errors import InputError, SpecError
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.ppd import PromptTokens
from tersor.passes.speculate.several import Several
from tersor.runtime import generation
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics
from tersor.runtime.tree import TokenTree

SPEC = "speculate:drafter=ppd"
SAMPLINGS = [Sampling(), Sampling(temperature=1.1, seed=3)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "Policy", Eager)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "cost_curve", CHEAP)


def check(decoder: Decoder, plain: Decoder, drafter: Any, sampling: Sampling, batch: int) -> Statistics:
    """Tokens with guesses are those of ``plain`` without; what came of guesses."""
    expected = generate(plain, PROMPTS, Stopping(20), sampling)
    counts, given = Statistics(), guessing(decoder, drafter)
    found = generate(decoder, PROMPTS, Stopping(20), sampling, None, statistics=counts, batch=batch, **given)
    assert found == expected
    assert counts.probes
    return counts


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize("name", ["gemma3", "llama", "gpt2", "mistral"])
def test_tokens_are_those_of_the_model_alone(name: str, target: str) -> None:
    decoder, plain = decoder_on(name, target, speculate=SPEC), decoder_on(name, target)
    for sampling, batch in product(SAMPLINGS, (1, 3)):
        counts = check(decoder, plain, PromptTokens(), sampling, batch)
        assert counts.guesses > sum(counts.drafted), "no tree was checked"


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", sorted(set(DECODERS) - {"gemma3", "llama", "gpt2", "mistral"}))
def test_tokens_are_those_of_every_model(name: str) -> None:
    for sampling, batch in product(SAMPLINGS, (1, 3)):
        check(
            decoder_on(name, "torch", speculate=SPEC),
            decoder_on(name, "torch"),
            PromptTokens(),
            sampling,
            batch,
        )


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn"])
def test_tokens_are_the_same_where_the_policy_chooses(sampling: Sampling) -> None:
    check(
        decoder_on("llama", "torch", speculate=SPEC),
        decoder_on("llama", "torch"),
        PromptTokens(),
        sampling,
        1,
    )


@pytest.mark.usefixtures("eager")
def test_it_guesses_beside_others() -> None:
    decoder = decoder_on("llama", "torch", speculate="speculate:drafter=several,of=suffix+ppd")
    counts = check(decoder, decoder_on("llama", "torch"), Several(of=("suffix", "ppd")), Sampling(), 1)
    assert counts.guesses


def test_a_model_without_prompt_tokens_is_not_fed_any() -> None:
    decoder = decoder_on("llama", "torch")
    counts = Statistics()
    plain = generate(decoder, PROMPTS, Stopping(8), Sampling())
    given = guessing(decoder, PromptTokens())
    assert generate(decoder, PROMPTS, Stopping(8), Sampling(), None, statistics=counts, **given) == plain
    assert (counts.probes, counts.guesses) == (0, 0)


def test_the_end_of_a_text_is_not_looked_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of 64 positions no prompt token stands behind the last, and none where no token may follow."""
    decoder = decoder_on("gpt2", "torch", speculate=SPEC)
    monkeypatch.setattr(generation, "Policy", Eager)
    seen: list[int] = []
    original = Decoder.try_step

    def watched(self: Decoder, cache: Any, tokens: Any, branching: Any = None) -> Tensor:
        depths = 0 if branching is None else int(branching.depths.max())
        seen.append(max(cache.lengths) + depths)
        return original(self, cache, tokens, branching)

    monkeypatch.setattr(Decoder, "try_step", watched)
    prompt = list(range(3, 3 + 50))
    generate(decoder, [prompt], Stopping(14), Sampling(), None, **guessing(decoder, PromptTokens()))
    assert max(seen) < 50 + 14 <= 64


class _Noisy(Greedily):
    """Draws, for which the third likeliest of every place is chosen first."""

    def noisy(self, ahead: int, tokens: Any, scores: Any) -> list[float]:
        order = np.argsort(np.argsort([-s for s in scores]))
        return [float(s) + 100 * (rank == 2) for s, rank in zip(scores, order, strict=True)]


@pytest.mark.parametrize("outlook", [Greedily(), _Noisy()], ids=["greedy", "noisy"])
def test_guesses_are_the_likeliest_of_every_place(outlook: Any) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 3
    drafting = PromptTokens(candidates=3).begin()
    assert drafting.draft(5, outlook) == []
    drafting.probed(logits)
    found = {tuple(draft.tokens): draft for draft in drafting.draft(5, outlook)}
    best = np.argsort(-logits.numpy(), axis=1, kind="stable")[:, :12]
    if isinstance(outlook, _Noisy):
        best = best[:, [2, 0, 1]]
    expected = {
        tuple(int(best[place, rank]) for place, rank in enumerate(ranks)): ranks
        for ranks in product(range(3), repeat=3)
        if sum(ranks) <= 2
    }
    assert found.keys() == expected.keys()
    sure = torch.softmax(logits, 1)
    for tokens, draft in found.items():
        assert draft.probed
        assert draft.chances == pytest.approx(
            [float(sure[place, token]) for place, token in enumerate(tokens)]
        )
        assert [kind // 4 for kind in draft.kinds] == list(expected[tokens])
    assert {len(draft.tokens) for draft in drafting.draft(2, outlook)} == {2}
    drafting.extend([7])
    assert drafting.draft(5, outlook) == []


@pytest.mark.parametrize("candidates", [1, 2, 4, 6])
def test_so_many_are_guessed_at_the_next_place_as_are_asked_for(candidates: int) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    drafting = PromptTokens(candidates=candidates).begin()
    drafting.probed(logits)
    drafts = drafting.draft(5)
    assert {draft.tokens[0] for draft in drafts} == set(logits[0].topk(candidates).indices.tolist())
    assert TokenTree.of(0, drafts).guesses <= 64


def test_prompt_tokens_are_read_from_a_file(tmp_path: Path) -> None:
    prompts = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    save_file({"prompts": prompts}, tmp_path / "p.safetensors")
    program, report = run(
        decoder_program("llama"), ["kv-cache", f"{SPEC},prompts={tmp_path / 'p.safetensors'}"]
    )
    assert report.steps[-1].verdict == "kept"
    assert torch.equal(program.weights["prompts"][1:], prompts)
    assert "probes: i64[batch, tokens]" in str(program).splitlines()[0]


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"prompts": torch.zeros(2, 31)}, "of 31 channels, and the model's embeddings have 32"),
        ({"prompts": torch.full((2, 32), torch.nan)}, "are not numbers"),
        ({"prompts": torch.zeros(32)}, r"\[32\] torch.float32, not floats \[count, width\]"),
        ({"prompts": torch.zeros(0, 32)}, r"\[0, 32\]"),
        ({"prompts": torch.zeros(2, 32, dtype=torch.int64)}, "torch.int64, not floats"),
        ({"other": torch.zeros(2, 32)}, "holds no tensor 'prompts'"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, Tensor], reason: str) -> None:
    file = tmp_path / "p.safetensors"
    save_file(tensors, file)
    with pytest.raises(InputError, match=reason) as error:
        run(decoder_program("llama"), ["kv-cache", f"{SPEC},prompts={file}"])
    assert str(file) in str(error.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file 'nowhere' of prompt tokens"):
        run(decoder_program("llama"), ["kv-cache", f"{SPEC},prompts=nowhere"])
    (tmp_path / "p").write_text("text")
    with pytest.raises(InputError, match="holds no tensor 'prompts'"):
        run(decoder_program("llama"), ["kv-cache", f"{SPEC},prompts={tmp_path / 'p'}"])


def test_options_that_make_no_sense_are_named() -> None:
    with pytest.raises(SpecError, match="candidates=0 must be 1 or more"):
        parse_spec(f"{SPEC},candidates=0")
    with pytest.raises(SpecError, match="names 'ppd' twice"):
        parse_spec("speculate:drafter=several,of=ppd+ppd")


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_the_front_door(tmp_path: Path, weights: str) -> None:
    """Also with rounded weights, whose plain tokens stay what they are."""
    program = decoder_program("llama")
    plain = tersor.optimize_model(program, ["kv-cache"], "onnx", weights=weights)
    fast = tersor.optimize_model(program, ["kv-cache", SPEC], "onnx", weights=weights)
    fast.save(tmp_path / "out")
    loaded = tersor.load(tmp_path / "out")
    for sampling in ({}, {"temperature": 1.1, "seed": 3}):
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            expected = plain.generate(ids, max_new_tokens=20, **sampling)
            assert torch.equal(loaded.generate(ids, max_new_tokens=20, **sampling), expected)
            assert loaded.generated.probes
    with pytest.raises(InputError, match=r"token id 120; the model takes 0 to 119"):
        loaded.generate(torch.tensor([[5, 120]]), max_new_tokens=2)
