"""The cache pass: what it writes, that it changes nothing, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import BERT, huggingface
from decoders import DECODERS, decoder_program, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.ir import archive
from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program
from tersor.ir.stepping import run_in_steps
from tersor.passes.pipeline import run


def cached(name: str, spec: str = "kv-cache") -> Program:
    program, report = run(decoder_program(name), [spec])
    assert report.steps[-1].verdict == "kept"
    return program


@pytest.mark.parametrize("name", DECODERS)
def test_steps_give_what_whole_rows_give(name: str) -> None:
    program = cached(name)
    inputs = rows([13, 6, 1])
    whole = decoder_program(name).run(inputs)[0]
    one_by_one = run_in_steps(
        program.stepping, program.inputs, program.outputs, program.step, inputs, range(1, 13)
    )
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(one_by_one[0][real], whole[real], rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["gemma3", "opt"]),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    bounds=st.sets(st.integers(1, 19), max_size=6),
    layout=st.sampled_from(["windowed", "contiguous"]),
)
def test_any_division_into_steps_gives_the_same(
    name: str, lengths: list[int], bounds: set[int], layout: str
) -> None:
    program = cached(name, f"kv-cache:layout={layout}")
    inputs = rows(lengths, seed=len(bounds))
    whole = decoder_program(name).run(inputs)[0]
    steps = run_in_steps(
        program.stepping, program.inputs, program.outputs, program.step, inputs, sorted(bounds)
    )
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(steps[0][real], whole[real], rtol=0, atol=1e-5)


def test_padding_on_the_left_is_no_token() -> None:
    program = cached("llama")
    left, right = rows([9, 4], "left"), rows([9, 4], "right")
    right["input_ids"][1, :4] = left["input_ids"][1, -4:]
    right["input_ids"][0] = left["input_ids"][0]
    torch.testing.assert_close(program.run(left)[0][1, -4:], program.run(right)[0][1, :4])


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_rows_padded_on_the_left_are_what_the_model_says_they_are(name: str) -> None:
    inputs = rows([11, 7, 2], "left")
    real = inputs["attention_mask"].bool()
    whole = decoder_program(name).run(inputs)[0]
    torch.testing.assert_close(cached(name).run(inputs)[0][real], whole[real], rtol=0, atol=1e-5)


def test_every_kind_of_step_is_there_by_default_and_padding_is_zeros() -> None:
    program, widths = cached("llama"), []

    def step(inputs: Any) -> Any:
        widths.append(inputs["input_ids"].shape[1])
        return program.step(inputs)

    inputs = rows([13, 6])
    (found,) = run_in_steps(program.stepping, program.inputs, program.outputs, step, inputs)
    assert widths == [7, 1, 1, 4]
    assert not found[1, 6:].any()


def test_tokens_are_dropped_before_a_cache_or_not_at_all() -> None:
    for specs in (["kv-cache", "token-drop:method=norm"], ["token-drop:method=norm", "kv-cache"]):
        with pytest.raises(RefusedError):
            run(decoder_program("llama"), specs)


def test_layers_share_slots_by_how_far_they_look_back() -> None:
    by_layout: dict[str, Any] = {spec: cached("gemma3", f"kv-cache:{spec}") for spec in (
        "layout=windowed", "layout=contiguous",
    )}  # fmt: skip
    groups = {
        spec: [(s.capacity, s.window, len(s.states)) for s in program.stepping.slots]
        for spec, program in by_layout.items()
    }
    assert groups == {
        "layout=windowed": [("capacity_4", 4, 4), ("capacity", 0, 4)],
        "layout=contiguous": [("capacity", 0, 8)],
    }


def test_the_rewritten_graph_reads_positions_and_keeps_keys() -> None:
    program = cached("gpt2")
    text = str(program)
    assert not any(is_dialect(node, "attention") for node in program.graph.nodes)
    assert "arange" not in text
    assert [spec.name for spec in program.called_with] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in program.returned] == ["logits"]
    assert program.returned[0].shape[:2] == ("batch", "wanted")
    steps = [line.split("   #")[0].strip() for line in text.splitlines() if "cached_attention(" in line]
    assert steps[0].endswith(
        "-> (f32[batch, 4, tokens, 8], f32[batch, 4, capacity, 8], f32[batch, 4, capacity, 8])"
    )


def test_only_what_is_wanted_is_computed_past_the_last_block() -> None:
    program = cached("llama")
    head = next(node for node in program.graph.nodes if "lm_head" in str(node.meta.get("layer")))
    assert str(head.meta["val"].shape[1]) in {s for s, name in program.symbols.items() if name == "wanted"}


def test_it_is_saved_and_read_back(tmp_path: Any) -> None:
    program = cached("gemma3")
    archive.save(program, tmp_path / "p")
    loaded = archive.load(tmp_path / "p")
    assert loaded.stepping == program.stepping
    inputs = rows([7, 5])
    assert torch.equal(loaded.run(inputs)[0], program.run(inputs)[0])


@pytest.mark.parametrize(
    ("config", "model", "options", "reason"),
    [
        ("BertConfig", "BertModel", BERT, "it is not causal"),
        (
            "BloomConfig",
            "BloomForCausalLM",
            dict(vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
            "its mask",
        ),
    ],
)
def test_what_cannot_keep_a_cache_is_refused_with_the_node(
    config: str, model: str, options: dict[str, Any], reason: str
) -> None:
    program = capture(huggingface(config, model, **options)())
    with pytest.raises(RefusedError, match=reason):
        run(program, ["kv-cache"])


class Plain(nn.Module):
    """One causal block over ids ``[batch, tokens]``, whose place in the row is added as ``place(index)``."""

    def __init__(self, place: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.place = place
        self.embed, self.qkv, self.out = nn.Embedding(50, 16), nn.Linear(16, 48), nn.Linear(16, 50)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1]))[:, None]
        q, k, v = self.qkv(x).unflatten(-1, (6, 8)).transpose(1, 2).chunk(3, dim=1)
        x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.out(x + torch.tanh(x))


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (lambda i: (i * 0.1).sin(), None),
        (lambda i: i - i.float().mean(), "positions of several tokens at once"),
        (lambda i: i.float().cumsum(0), "positions of several tokens at once"),
        (lambda i: i * 1.0 / i.shape[0], "computes with the number of tokens"),
        (lambda i: i.float().flip(0), "positions of several tokens at once"),
        (lambda i: torch.arange(1, i.shape[0] + 1) * 0.1, "counts them in no way"),
    ],
    ids=["by-index", "mean", "running-sum", "share", "from-the-end", "from-one"],
)
def test_positions_must_be_each_tokens_own(place: Callable[[Tensor], Tensor], reason: str | None) -> None:
    program = capture(Plain(place).eval(), {"input_ids": torch.randint(0, 50, (2, 9))})
    if reason is None:
        assert run(program, ["kv-cache"])[1].steps[-1].verdict == "kept"
        return
    with pytest.raises(RefusedError, match=reason):
        run(program, ["kv-cache"])


class Bigrams(Plain):
    """A token is what it is and what the one before it was."""

    def forward(self, input_ids: Tensor) -> Tensor:
        before = F.pad(input_ids, (1, 0))[:, :-1]
        return super().forward(input_ids) + self.out(self.embed(before))


class Gated(Plain):
    """What a token gives depends on its id beside the embedding."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids) * (input_ids != 3)[:, :, None]


@pytest.mark.parametrize("kind", [Bigrams, Gated])
def test_ids_may_be_read_by_the_embedding_alone(kind: type[Plain]) -> None:
    model = kind(lambda i: i * 0.1).eval()
    program = capture(model, {"input_ids": torch.randint(0, 50, (2, 9))})
    with pytest.raises(RefusedError, match="reads token ids beside the embedding"):
        run(program, ["kv-cache"])


def test_a_second_cache_is_refused() -> None:
    with pytest.raises(RefusedError, match="keeps a cache already"):
        run(cached("llama"), ["kv-cache"])
