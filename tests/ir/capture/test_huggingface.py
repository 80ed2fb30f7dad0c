"""transformers models speak the dialect: masks arrive as what they mean, and the result is the model's to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.capture.huggingface import prove_mask
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program

SMALL = dict(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def huggingface(name: str, model: str = "Model", **config: object) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, name + model)(
        getattr(transformers, name + "Config")(**{**SMALL, **config})
    ).eval()


def attention_nodes(program: Program) -> list[torch.fx.Node]:
    return [n for n in program.graph.nodes if is_dialect(n, "attention")]


def test_ids_alone_give_plain_causal_attention():
    model = huggingface("Llama", num_key_value_heads=1)
    program = capture(model, {"input_ids": torch.randint(50, (2, 6))})
    assert {(n.args[3], n.args[4], n.kwargs["causal"]) for n in attention_nodes(program)} == {
        (None, None, True)
    }
    ids = torch.randint(50, (3, 9))
    assert torch.equal(program(ids).last_hidden_state, model(ids, use_cache=False).last_hidden_state)


class Inside(nn.Module):
    """A model of transformers within another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.model(input_ids, position_ids=position_ids).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    "example", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 0, 1, 2]], ids=["whole", "packed"]
)
def test_positions_that_restart_keep_packed_sequences_apart_where_the_model_does(
    example: list[int], use_cache: bool, inside: bool
) -> None:
    """As it is called: with a cache, which is its own default, it looks for none."""
    model = huggingface("Llama", num_key_value_heads=1, use_cache=use_cache)
    called = Inside(model).eval() if inside else model
    ids = torch.randint(50, (2, 8))
    program = capture(called, {"input_ids": ids, "position_ids": torch.tensor(example).expand(2, 8)})
    for positions in (example, [0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2, 3, 4]):
        given = ids, torch.tensor(positions).expand(2, 8)
        with torch.no_grad():
            want = called(ids, position_ids=given[1])
        want, got = (found if inside else found.last_hidden_state for found in (want, program(*given)))
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    if use_cache:
        assert {(n.args[3], n.kwargs["causal"]) for n in attention_nodes(program)} == {(None, True)}


def test_padding_on_the_left_leaves_real_tokens_equal():
    model = huggingface("Mistral", num_key_value_heads=1, sliding_window=4)
    program = capture(model)
    ids, mask = torch.randint(50, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    expected = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
    actual = program(ids, mask).last_hidden_state
    torch.testing.assert_close(actual[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=1e-5)


def test_a_window_wider_than_the_example_is_kept():
    model = huggingface("Mistral", num_key_value_heads=1, sliding_window=40)
    assert {n.kwargs["window"] for n in attention_nodes(capture(model))} == {40}


def test_each_layer_has_its_own_window():
    assert [n.kwargs["window"] for n in attention_nodes(capture(gemma3()))] == [5, 0]


def gemma3() -> nn.Module:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    layers = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **SMALL, num_key_value_heads=1, head_dim=8, sliding_window=5, layer_types=layers
    )
    return Gemma3TextModel(config).eval()


def test_softcap_and_sinks_travel_with_the_node():
    model = huggingface("Gemma2", num_key_value_heads=1, head_dim=8, attn_logit_softcapping=7.0)
    assert {n.kwargs["softcap"] for n in attention_nodes(capture(model))} == {7.0}
    model = huggingface(
        "GptOss",
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        sliding_window=4,
    )
    assert all(n.args[7] is not None for n in attention_nodes(capture(model)))


def test_relative_positions_stay_a_bias_beside_the_padding():
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(
        T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    ).eval()
    program = capture(model)
    nodes = attention_nodes(program)
    assert {(n.args[3] is not None, n.args[4] is not None) for n in nodes} == {(True, True)}
    assert len({n.args[3] for n in nodes}) == 1
    assert not any(is_dialect(n, "token_mask") for n in program.graph.nodes)


def test_no_mask_is_computed_that_nothing_reads(tiny_bert):
    assert not any(is_dialect(n, "token_mask") for n in capture(tiny_bert).graph.nodes)


def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return k <= q


@pytest.mark.parametrize(
    ("function", "meaning"),
    [
        (causal, (True, 0)),
        (lambda b, h, q, k: q.new_ones((), dtype=torch.bool), (False, 0)),
        (lambda b, h, q, k: (k <= q) & (k > q - 7), (True, 7)),
        (lambda b, h, q, k: (q - k).abs() <= 3, (False, 4)),
        (lambda b, h, q, k: (k <= q) & (k // 8 == q // 8), None),
        (lambda b, h, q, k: k <= q + 2, None),
        (lambda b, h, q, k: k >= q, None),
        (lambda b, h, q, k: (k <= q) | (k < 4), None),
        (lambda b, h, q, k: (k <= q) & (k % 2 == 0), None),
        (lambda b, h, q, k: k > 10**9, None),
    ],
)
def test_an_index_mask_is_named_only_when_it_is_one_of_ours(function, meaning):
    assert prove_mask(function) == meaning


def test_a_mask_of_keys_varies_with_the_tokens() -> None:
    class Extended(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask[:, 0])

    program = capture(Extended(), {"x": torch.randn(2, 6, 8), "mask": torch.ones(2, 1, 1, 6).bool()})
    x, mask = torch.randn(3, 9, 8), (torch.arange(9) < torch.tensor([9, 4, 1])[:, None])[:, None, None]
    torch.testing.assert_close(program(x, mask), Extended()(x, mask), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_a_mask_of_pairs_varies_with_the_tokens(dtype: torch.dtype) -> None:
    """As of a prefix that all tokens see."""

    def seen(tokens: int, prefix: int) -> Tensor:
        place = torch.arange(tokens)
        found = ((place[:, None] >= place) | (place < prefix)).expand(2, 1, tokens, tokens)
        return found if dtype == torch.bool else torch.zeros(found.shape).masked_fill(~found, -1e9)

    model = huggingface("Llama", num_key_value_heads=1)
    program = capture(model, {"input_ids": torch.randint(50, (2, 6)), "attention_mask": seen(6, 2)})
    for tokens, prefix in ((6, 3), (11, 4)):
        ids, mask = torch.randint(50, (2, tokens)), seen(tokens, prefix)
        with torch.no_grad():
            want = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        torch.testing.assert_close(program(ids, mask).last_hidden_state, want, atol=1e-6, rtol=1e-5)
