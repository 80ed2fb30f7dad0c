"""Trained prompt tokens say what the model says later, better than untrained ones, and so more guesses are right."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import LLAMA, huggingface
from decoders import decoder_program
from guesses import CHEAP, Eager, draft_of, guessing
from safetensors.torch import load_file
from torch import Tensor

from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program
from tersor.ir.prompt_tokens import with_prompt_tokens
from tersor.passes.pipeline import run
from tersor.passes.speculate.ppd import PromptTokens
from tersor.runtime import generation
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics
from tersor.runtime.tree import TokenTree, side_by_side
from tersor.train_prompts import Trained, _Student, train_prompts

USED, VOCABULARY, WIDTH, LENGTH = 9, 64, 32, 40


def songs(count: int, seed: int) -> Tensor:
    """Rows of four tokens that are sung ten times."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, USED, (count, 4), generator=generator).repeat(1, LENGTH // 4)


@cache
def singer() -> Program:
    """A model that has learned to sing on; most tokens it has never seen, and what it makes of their mean is chance."""
    model = huggingface("LlamaConfig", "LlamaForCausalLM", **dict(LLAMA, vocab_size=VOCABULARY))()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = songs(1000, 1)
    for _ in range(200):
        rows = data[torch.randint(len(data), (32,), generator=generator)]
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[USED:] = -3 * table[3:USED].mean(0)
    return capture(model)


@cache
def trained(steps: int = 150, seed: int = 0) -> Trained:
    return train_prompts(singer(), songs(40, 2).flatten().tolist(), 2, steps, LENGTH, seed)


def generated(prompts: Tensor | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Statistics:
    """What came of guesses by ``prompts``, or by untrained ones."""
    monkeypatch.setattr(Decoder, "cost_curve", CHEAP)
    monkeypatch.setattr(generation, "Policy", Eager)
    spec = "speculate:drafter=ppd"
    if prompts is not None:
        trained().save(tmp_path / "p.safetensors")
        spec += f",prompts={tmp_path / 'p.safetensors'}"
    decoder = Decoder(run(singer(), ["kv-cache", spec])[0], find_target("torch").lower)
    texts = songs(8, 4)[:, :9].tolist()
    plain = generate(decoder, texts, Stopping(24), Sampling())
    counts, given = Statistics(), guessing(decoder, PromptTokens(candidates=1))
    found = generate(decoder, texts, Stopping(24), Sampling(), None, statistics=counts, batch=1, **given)
    assert found == plain
    return counts


def test_the_loss_falls_and_more_guesses_are_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = trained()
    assert result.after.loss < 0.2 * result.before.loss
    assert all(a > b for a, b in zip(result.after.first, result.before.first, strict=True))
    before, after = generated(None, monkeypatch, tmp_path), generated(result.prompts, monkeypatch, tmp_path)
    print(before, after, result.before, result.after, sep="\n")
    rates = [[a / d for a, d in zip(c.accepted, c.drafted, strict=True)] for c in (before, after)]
    # The first of a tree is the second behind what was known when it was guessed.
    assert rates[1][0] > rates[0][0] + 0.1
    assert rates[1][1] > rates[0][1]
    assert after.steps < before.steps


def test_the_same_seed_trains_the_same() -> None:
    assert torch.equal(
        train_prompts(singer(), songs(40, 2).flatten().tolist(), 2, 3, LENGTH).prompts, trained(3).prompts
    )
    assert not torch.equal(trained(3, seed=1).prompts, trained(3).prompts)


def test_every_row_opens_as_texts_do(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[int]] = []
    seen = _Student.run

    def watched(self: _Student, row: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        rows.append(row.tolist())
        return seen(self, row, *rest)

    monkeypatch.setattr(_Student, "run", watched)
    text = list(range(3, 60))
    train_prompts(singer(), text, 2, 3, 16, opening=[1, 2])
    # Of each row of what is measured, and of one a step.
    assert len(rows) > 3
    for row in rows:
        assert row[:2] == [1, 2]
        assert row[2:] == list(range(row[2], row[2] + 14))
    assert max(map(max, rows)) == text[-1]


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "opt"])
def test_training_sees_what_decoding_sees(name: str) -> None:
    """Logits behind groups of prompt tokens in one step are those of a tree behind the text up to there."""
    stepped = run(decoder_program(name), ["kv-cache", "speculate:drafter=suffix"])[0]
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(3, 32, generator=generator)
    program = with_prompt_tokens(stepped, prompts)
    row, after = torch.randint(3, 120, (16,), generator=generator), torch.tensor([0, 4, 11])
    said, own = _Student(program, 3, 16).run(row, after, prompts)
    decoder = Decoder(program, find_target("torch").lower)
    for group, place in enumerate(after.tolist()):
        cache = decoder.new_cache(1)
        if place:
            decoder.prefill(cache, 0, row[:place].tolist())
        tree = TokenTree.of(int(row[place]), [draft_of([5])])
        for _ in range(3):
            tree.probe(0)
        cache.reserve(len(tree))
        found = decoder.try_step(cache, *side_by_side([tree]))[0, tree.probes[0]]
        torch.testing.assert_close(said[group], found, rtol=0, atol=1e-4)
        plain = decoder.prefill(decoder.new_cache(1), 0, row[: place + 2].tolist())
        torch.testing.assert_close(own[group, 0], plain, rtol=0, atol=1e-4)


def test_gradients_are_those_of_small_changes() -> None:
    program = run(singer(), ["kv-cache", "speculate:drafter=suffix"])[0]
    prompts = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0), requires_grad=True)
    student = _Student(with_prompt_tokens(program, prompts.detach()), 2, 16)
    row, after = songs(1, 3)[0, :16], torch.tensor([2, 5, 9])

    def loss(prompts: Tensor) -> Tensor:
        return student.run(row, after, prompts)[0].logsumexp(-1).sum()

    loss(prompts).backward()  # type: ignore[no-untyped-call]
    assert prompts.grad is not None
    direction = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        change = (loss(prompts + 1e-3 * direction) - loss(prompts - 1e-3 * direction)) / 2e-3
    assert float((prompts.grad * direction).sum()) == pytest.approx(float(change), rel=2e-2)


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = trained(3).save(tmp_path / "p.safetensors")
    assert torch.equal(load_file(file)["prompts"], trained(3).prompts)
    before = file.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tersor.train_prompts.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(3).save(file)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    assert file.read_bytes() == before


def test_what_cannot_be_trained_on_is_said() -> None:
    with pytest.raises(InputError, match="the text has 10 tokens: give one of at least 128"):
        train_prompts(singer(), list(range(10)))
    with pytest.raises(InputError, match="the model takes 64 tokens: rows of 80 are too long"):
        train_prompts(decoder_program("gpt2"), [5] * 200, length=80)
    with pytest.raises(InputError, match="longer than the opening and the prompt tokens"):
        train_prompts(singer(), [5] * 200, count=8, length=8)
    with pytest.raises(InputError, match="holds the token id 64; the model takes 0 to 63"):
        train_prompts(singer(), [*[5] * 200, VOCABULARY], length=16)
    with pytest.raises(InputError, match="16 tokens, 8 of them the opening: give"):
        train_prompts(singer(), [5] * 200, count=8, length=16, opening=[1] * 8)
