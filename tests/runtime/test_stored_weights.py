"""Guesses change nothing of what a model with rounded weights says, of a row alone or of a short one beside others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from architectures import LLAMA, huggingface
from decoders import DECODERS, PROMPTS, decoder_program, rows
from guesses import CHEAP, draft_of
from torch import Tensor

from tersor.codegen.onnx.weights import stored_weights
from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.drafting import Draft, Drafting
from tersor.passes.pipeline import run
from tersor.passes.smoothing import smoothed
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.kv_cache import KvCache
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics


@cache
def decoder_stored(name: str, kind: str) -> Decoder:
    program, _ = run(decoder_program(name), ["kv-cache", "speculate"])
    return Decoder(program, lambda form: find_target("onnx").lower(form, weights=kind, threads=1))


@dataclass
class Mostly(Drafting):
    """Guesses a text, every fifth token wrong, with another guess beside each."""

    text: list[int]
    seen: list[int] = field(default_factory=list)

    def extend(self, tokens: Sequence[int]) -> None:
        self.seen += tokens

    def observe(self, tokens: Sequence[int], logits: Tensor) -> None:
        pass

    def draft(self, most: int, outlook: Any = None) -> list[Draft]:
        start = len(self.seen)
        ahead = self.text[start : start + most]
        known = [(t + 1) % 100 if (start + i) % 5 == 0 else t for i, t in enumerate(ahead)]
        others = [draft_of([*known[:place], (token + 2) % 100], 1) for place, token in enumerate(known)]
        return [*others, draft_of(known)]


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_the_same_with_guesses_and_without(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_stored(name, kind)
    monkeypatch.setattr(type(decoder), "cost_curve", CHEAP)
    plain = generate(decoder, PROMPTS, Stopping(24), Sampling())
    counts = Statistics()
    for prompt, new in zip(PROMPTS, plain, strict=True):
        text = prompt + new
        assert generate(decoder, [prompt], Stopping(24), Sampling())[0] == new
        guessed = generate(
            decoder, [prompt], Stopping(24), Sampling(), None, lambda _, text=text: Mostly(text), counts
        )
        assert guessed[0] == new
    assert sum(counts.accepted) > 20
    texts = iter([p + n for p, n in zip(PROMPTS, plain, strict=True)])
    assert generate(decoder, PROMPTS, Stopping(24), Sampling(), None, lambda _: Mostly(next(texts))) == plain


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 4])
def test_a_row_that_is_left_alone_says_what_it_said_beside_others(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide enough for several blocks a row, and long enough for rounding to decide; guesses end rows earlier."""
    wide = dict(LLAMA, hidden_size=160, head_dim=40, intermediate_size=224, max_position_embeddings=512)
    program, _ = run(
        capture(huggingface("LlamaConfig", "LlamaForCausalLM", **wide)()), ["kv-cache", "speculate"]
    )
    decoder = Decoder(program, lambda form: find_target("onnx").lower(form, weights="int8", threads=1))
    monkeypatch.setattr(type(decoder), "cost_curve", CHEAP)
    prompts = [list(range(3, 3 + length)) for length in (1, 4, 18, 40)]
    plain = generate(decoder, prompts, Stopping(150), Sampling(), batch=batch)
    texts = iter([p + n for p, n in zip(prompts, plain, strict=True)])
    guess = lambda _: Mostly(next(texts))  # noqa: E731
    assert generate(decoder, prompts, Stopping(150), Sampling(), None, guess, batch=batch) == plain


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_logits_of_a_wide_step_are_those_of_single_steps(kind: str) -> None:
    decoder = decoder_stored("gemma3", kind)
    cache_ = decoder.new_cache(1)
    decoder.prefill(cache_, 0, PROMPTS[1])
    cache_.reserve(4)
    together = decoder.try_step(cache_, [[5, 6, 7, 8]])[0]
    one_by_one = torch.stack([decoder.step(cache_, [[token]])[0, 0] for token in (5, 6, 7, 8)])
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=2e-3)


def test_forms_share_what_is_stored() -> None:
    decoder = decoder_stored("llama", "int8")
    generate(decoder, PROMPTS, Stopping(3), Sampling())
    generate(decoder, PROMPTS[:1], Stopping(3), Sampling())
    held = [executable._stored for executable in decoder._forms.values()]  # type: ignore[attr-defined]
    assert len(held) > 1
    assert all(one[name] is other[name] for one in held for other in held for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["kv-cache", "kv-cache:layout=paged"])
def test_states_are_the_same_whatever_was_guessed(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads whose sums kernels cut, windows that move, wide blocks: bit for bit, over many chunks."""
    sizes = dict(
        vocab_size=1 << 15, hidden_size=128, intermediate_size=256, head_dim=256, sliding_window=70,
        num_key_value_heads=1,
    )  # fmt: skip
    model = huggingface("Gemma3TextConfig", "Gemma3ForCausalLM", **(LLAMA | sizes))()
    program, _ = run(capture(model), [cache, "speculate"])
    program = smoothed(program, [program.bind(**rows([9, 9]))])
    blocks = {stored.block_size for stored in stored_weights(program, "int8").values()}  # type: ignore[attr-defined]
    assert blocks == {32, 128}
    decoder = Decoder(program, lambda form: find_target("onnx").lower(form, weights="int8", threads=1))
    monkeypatch.setattr(type(decoder), "cost_curve", CHEAP)
    kept: list[dict[str, Tensor]] = []

    def small_cache(rows: int) -> KvCache:
        return KvCache(decoder.stepping, program.inputs, rows, longest_step=64, in_chunks=True)

    remove = KvCache.remove

    def keep(cache: KvCache, row: int) -> None:
        kept.append({name: state.clone() for name, state in cache.states(row).items()})
        remove(cache, row)

    monkeypatch.setattr(decoder, "new_cache", small_cache)
    monkeypatch.setattr(KvCache, "remove", keep)
    prompt = list(range(3, 40))
    plain = generate(decoder, [prompt], Stopping(300), Sampling())
    counts = Statistics()
    guess = lambda _: Mostly(prompt + plain[0])  # noqa: E731
    assert generate(decoder, [prompt], Stopping(300), Sampling(), None, guess, counts) == plain
    assert max(counts.accepted) > 20
    for name, state in kept[0].items():
        shared = min(state.shape[1], kept[1][name].shape[1])
        assert torch.equal(state[:, :shared], kept[1][name][:, :shared]), name
