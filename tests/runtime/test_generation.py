"""Generation against ``transformers.generate``, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from chances import chances_of
from decoders import DECODERS, PROMPTS, decoder, decoder_on, decoder_program, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.errors import ExecutionError, InputError
from tersor.passes.pipeline import run
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampler, Sampling


def by_transformers(name: str, prompt: list[int], new: int, **options: Any) -> list[int]:
    model: Any = decoder(name)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        result = model.generate(
            ids, attention_mask=torch.ones_like(ids), min_new_tokens=new, max_new_tokens=new, **options
        )
    return result[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize("name", DECODERS)
def test_the_most_likely_tokens_are_those_of_transformers(name: str, target: str) -> None:
    # min_new_tokens bars the end tokens there: so it does here, by asking for logits without them.
    ends = decoder(name).generation_config.eos_token_id
    found = generate(decoder_on(name, target), PROMPTS, Stopping(12), Sampling())
    for prompt, new in zip(PROMPTS, found, strict=True):
        if ends in new:
            new = new[: new.index(ends)]
        assert new == by_transformers(name, prompt, 12)[: len(new)]
    assert sum(map(len, found)) == 36


def test_rows_together_are_the_rows_alone() -> None:
    on = decoder_on("gemma3", "onnx")
    together = generate(on, PROMPTS, Stopping(9), Sampling())
    assert together == [generate(on, [prompt], Stopping(9), Sampling())[0] for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_prompts_that_wait_for_others_to_end_are_the_prompts_alone(batch: int) -> None:
    on = decoder_on("gemma3", "onnx")
    prompts = [*PROMPTS, [9, 8], [4], PROMPTS[1]]
    alone = [generate(on, [prompt], Stopping(9), Sampling())[0] for prompt in prompts]
    ends = {alone[0][0], alone[1][3]}
    alone = [generate(on, [prompt], Stopping(9, ends), Sampling())[0] for prompt in prompts]
    assert len({len(new) for new in alone}) > 2
    assert generate(on, prompts, Stopping(9, ends), Sampling(), batch=batch) == alone


def test_a_prompt_longer_than_a_step_goes_in_pieces() -> None:
    on = decoder_on("mistral", "torch")
    prompt = rows([40])["input_ids"][0].tolist()
    cache_of_pieces, whole = on.new_cache(1), on.new_cache(1)
    cache_of_pieces.longest_step = 7
    torch.testing.assert_close(
        on.prefill(cache_of_pieces, 0, prompt), on.prefill(whole, 0, prompt), rtol=0, atol=1e-5
    )


def test_it_ends_at_an_end_token_at_a_count_and_where_it_is_told_to() -> None:
    on = decoder_on("llama", "torch")
    free = generate(on, [PROMPTS[1]], Stopping(10), Sampling())[0]
    end = free[4]
    first = free.index(end)
    assert generate(on, [PROMPTS[1]], Stopping(10, ends={end}), Sampling())[0] == free[: first + 1]
    assert generate(on, [PROMPTS[1]], Stopping(3), Sampling())[0] == free[:3]
    told = Stopping(10, stops=lambda tokens: len(tokens) == len(PROMPTS[1]) + 6)
    assert generate(on, [PROMPTS[1]], told, Sampling())[0] == free[:6]


def test_every_token_is_streamed_when_it_is_chosen() -> None:
    seen: list[tuple[int, int]] = []
    found = generate(
        decoder_on("llama", "torch"), PROMPTS[:2], Stopping(4), Sampling(), lambda n, t: seen.append((n, t))
    )
    assert [[t for n, t in seen if n == number] for number in range(2)] == found
    assert [n for n, _ in seen] == [0, 1] * 4


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_prompt_and_what_is_to_follow_must_fit_into_the_model(name: str) -> None:
    """As many as there are positions, however they are counted before they are looked up."""
    with pytest.raises(InputError, match="60 tokens and 10 are to follow; the model reads 64 at most"):
        generate(decoder_on(name, "torch"), [[5] * 60], Stopping(10), Sampling())
    assert len(generate(decoder_on(name, "torch"), [[5] * 60], Stopping(5), Sampling())[0]) == 5


def test_what_steps_cost_is_measured_within_the_positions_of_a_model() -> None:
    assert decoder_on("opt", "torch").cost_curve.widths == (1, 2, 3, 5, 9, 17)


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_positions_that_are_computed_bound_nothing(name: str) -> None:
    assert decoder_on(name, "torch").longest is None


def test_draws_follow_the_distribution_of_transformers_processors() -> None:
    sampling = Sampling(temperature=0.7, top_k=9, top_p=0.9, repetition_penalty=1.3)
    logits = torch.randn(40) * 3
    probabilities = chances_of(Sampler(sampling), [3, 5, 3], logits)
    scores = logits.clone()
    for token in (3, 5):
        scores[token] = scores[token] / 1.3 if scores[token] > 0 else scores[token] * 1.3
    scores = scores / 0.7
    scores[scores < scores.topk(9).values[-1]] = -torch.inf
    expected = scores.softmax(0)
    order = expected.argsort(descending=True)
    kept = order[: int((expected[order].cumsum(0) < 0.9).sum()) + 1]
    cut = torch.zeros(40)
    cut[kept] = expected[kept]
    torch.testing.assert_close(probabilities, cut / cut.sum())


def test_noise_is_gumbels_and_a_tokens_own() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3), row=1)
    noise = sampler._noise(7, torch.arange(200_000)).sort().values
    expected = -torch.log(-torch.log((torch.arange(200_000) + 0.5).double() / 200_000))
    # Kolmogorov-Smirnov at 1 in 10,000, on the scale of probabilities.
    assert (
        torch.exp(-torch.exp(-noise)) - torch.exp(-torch.exp(-expected))
    ).abs().max() < 2.23 / 200_000**0.5
    some = torch.tensor([3, 77, 5])
    assert torch.equal(sampler._noise(7, some), sampler._noise(7, torch.arange(80))[some])
    others = [Sampler(Sampling(temperature=1.0, seed=s), row=r)._noise(p, some)
              for s, r, p in ((3, 1, 8), (3, 2, 7), (4, 1, 7), (2, 3, 7))]  # fmt: skip
    assert not any(torch.isclose(sampler._noise(7, some), other).any() for other in others)


def test_a_seed_makes_draws_again() -> None:
    on = decoder_on("llama", "torch")
    hot = [
        generate(on, [[5, 6]], Stopping(12), Sampling(temperature=2.0, seed=seed))[0] for seed in (1, 1, 2)
    ]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize(
    ("prompts", "most", "reason"),
    [
        ([[5], []], 3, "prompt 1 is empty"),
        ([[5.5]], 3, "something else than token ids"),
        ([[5]], 0, "max_new_tokens=0 is no number of tokens"),
        ([[5000]], 3, "5000"),
        ([[-1]], 3, "-1"),
    ],
)
def test_bad_input_is_one_clear_error(prompts: Any, most: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        generate(decoder_on("gpt2", "onnx"), prompts, Stopping(most), Sampling())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -2}, "top_k=-2"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Sampling(**options)


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_logits_that_are_no_numbers_are_an_error(temperature: float | None) -> None:
    with pytest.raises(ExecutionError, match="behind token 2 are not numbers"):
        Sampler(Sampling(temperature)).choose([1, 2], torch.full((9,), torch.nan))
    one = torch.zeros(9)
    one[4] = torch.nan
    with pytest.raises(ExecutionError, match="not numbers"):
        Sampler(Sampling(temperature)).choose([1, 2], one)
    with pytest.raises(ExecutionError, match="not numbers"):
        Sampler(Sampling(temperature)).choose([1, 2], torch.full((9,), -torch.inf))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([3, 511, 512, 1300, 5000]),
    st.integers(1, 9),
    st.sampled_from(["spread", "ties", "hidden", "few", "nan", "infinite"]),
)
def test_a_draw_from_the_largest_is_the_draw_from_all(seed: int, size: int, top_k: int, kind: str) -> None:
    """What is found among the largest tokens is what the warpers find among all of them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator)
    if kind == "ties":
        logits = logits.round()
    elif kind == "hidden":
        logits[torch.rand(size, generator=generator) < 0.7] = -torch.inf
    elif kind == "few":
        logits[2:] = -torch.inf
    elif kind != "spread":
        logits[int(torch.randint(size, (), generator=generator))] = torch.nan if kind == "nan" else torch.inf
    sampler = Sampler(Sampling(0.7, top_k=top_k, top_p=0.9, seed=seed))
    if kind in ("nan", "infinite"):
        with pytest.raises(ExecutionError, match="not numbers"):
            sampler.choose([1, 2], logits)
        return
    chances = chances_of(sampler, [1, 2], logits)
    ids = chances.nonzero()[:, 0]
    scores = logits.div(0.7)[ids].double() + sampler._noise(2, ids)
    assert sampler.choose([1, 2], logits) == int(ids[scores.argmax()])


def test_a_model_may_call_its_dimensions_by_any_name() -> None:
    ids = torch.tensor([PROMPTS[1]])
    sizes = {0: "rows", 1: "length"}
    program = capture(
        decoder("llama"),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        {"input_ids": sizes, "attention_mask": sizes},
    )
    program, _ = run(program, ["kv-cache", "speculate"])
    on = Decoder(program, find_target("onnx").lower)
    expected = Decoder(run(decoder_program("llama"), ["kv-cache", "speculate"])[0], find_target("onnx").lower)
    for prompts in (PROMPTS[:1], PROMPTS):
        assert generate(on, prompts, Stopping(6), Sampling()) == generate(
            expected, prompts, Stopping(6), Sampling()
        )
    assert on.chosen == expected.chosen


def test_the_form_that_attention_takes_goes_by_rows_and_tokens_and_is_said() -> None:
    on = Decoder(run(decoder_program("llama"), ["kv-cache", "speculate"])[0], find_target("onnx").lower)
    assert on.chosen == {}
    generate(on, PROMPTS[:2], Stopping(3), Sampling())
    on.step(on.new_cache(2), [[5, 6], [7, 8]])
    assert on.chosen == {
        "one row": ("2 cached_attention by GroupQueryAttention, what a tree sees as a bias",),
        "one token a row": ("2 cached_attention by GroupQueryAttention",),
        "several tokens of several rows": (
            "2 cached_attention by ScatterElements and MatMul over all slots",
        ),
    }
    assert decoder_on("llama", "torch").chosen == {}
