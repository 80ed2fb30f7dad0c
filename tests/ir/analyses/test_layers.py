"""The residual stream and its blocks, from the data flow of models of every kind."""

from __future__ import annotations

import pytest
import torch
from architectures import LLAMA, huggingface
from decoders import DECODERS, decoder_program
from hypothesis import given, settings
from random_programs import Config, build, configs
from torch import Tensor, nn

from tersor.ir.analyses.layers import content_flow, is_attention, layers
from tersor.ir.capture import capture
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec


@given(configs())
@settings(max_examples=15, deadline=None)
def test_a_random_transformer_has_the_layers_it_was_built_with(config: Config) -> None:
    program = build(config)
    stack = layers(program)
    assert len(stack) == config.layers
    assert stack.outside == ()
    for layer in stack.blocks:
        assert layer.label == f"layers.{layer.index}.attention"
        assert layer.start in stack.stream
        if config.layers > 1:
            assert (layer.after_attention is layer.end) == (config.parallel and config.norm == "pre")
    for before, after in zip(stack.blocks, stack.blocks[1:], strict=False):
        assert before.end is after.start


def test_the_last_block_ends_before_the_head(tiny_vit: nn.Module) -> None:
    program = capture(tiny_vit)
    stack = layers(program)
    assert [layer.end.target for layer in stack.blocks] == [torch.ops.aten.add.Tensor] * 3
    (reader,) = stack.end.users
    assert reader.target is torch.ops.aten.layer_norm.default


def test_post_norm_blocks_end_on_their_norm(tiny_bert: nn.Module) -> None:
    stack = layers(capture(tiny_bert))
    assert [layer.end.target for layer in stack.blocks] == [torch.ops.aten.layer_norm.default] * 3


def test_cross_attention_is_no_layer_of_its_own() -> None:
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    model = WhisperModel(
        WhisperConfig(
            vocab_size=60,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    ).eval()
    inputs = {
        "input_features": torch.randn(2, 8, 20),
        "decoder_input_ids": torch.randint(3, 50, (2, 7)),
    }
    program = capture(model, inputs)
    stack = layers(program)
    assert len(stack) == 2
    assert {layer.label.split(".")[0] for layer in stack.blocks} in ({"encoder"}, {"decoder"})
    assert len(stack.outside) == 4
    cross = [reason for node, reason in stack.outside if "encoder_attn" in node.meta["layer"]]
    assert len(cross) == 2
    assert all("residual stream" in reason for reason in cross)


def test_an_output_from_before_the_stack_does_not_hide_it() -> None:
    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
            )

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.inner(x)
            return self.encoder(features), features

    program = capture(TwoOutputs().eval(), {"x": torch.randn(2, 5, 8)})
    assert len(layers(program)) == 2


def test_angles_of_positions_that_are_given_are_not_the_stream() -> None:
    model = huggingface("LlamaConfig", "LlamaForCausalLM", **LLAMA)()
    ids = torch.randint(3, 90, (2, 8))
    program = capture(model, {"input_ids": ids, "position_ids": torch.arange(8).expand(2, 8).clone()})
    stack = layers(program)
    assert len(stack) == 2
    assert stack.outside == ()
    assert stack.stream[0].target == "input_ids"
    with pytest.raises(RefusedError, match="capture it without 'position_ids'"):
        run(program, ["kv-cache"])


def test_a_model_that_returns_every_hidden_state_has_no_stack() -> None:
    class AllStates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)
            )

        def forward(self, x: Tensor) -> list[Tensor]:
            states = [x]
            for layer in self.layers:
                states.append(layer(states[-1]))
            return states

    stack = layers(capture(AllStates().eval(), {"x": torch.randn(2, 5, 8)}))
    assert all(reason for _, reason in stack.outside)


@pytest.mark.parametrize("width", [8, 4])
def test_layers_past_which_an_early_state_goes_are_no_block(width: int) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(5)
            )
            self.head = nn.Linear(2 * width, 3)

        def forward(self, x: Tensor) -> Tensor:
            states = []
            for layer in self.layers:
                x = layer(x)
                states.append(x)
            return self.head(torch.cat([states[1][..., :width], states[-1][..., :width]], dim=-1))

    model = Joined().eval()
    program = capture(model, {"x": torch.randn(2, 6, 8)})
    stack = layers(program)
    assert len(stack) == 2
    assert stack.end.target is torch.ops.aten.add.Tensor
    assert len(stack.outside) == 3
    assert all("go past it and past" in reason for _, reason in stack.outside)
    # Tokens are dropped before, and are all there again for what is joined.
    dropped, report = run(program, ["token-drop:method=norm,keep=0.5"])
    assert report.kept
    x = torch.randn(3, 9, 8)
    assert dropped(x).shape == model(x).shape


def test_blocks_are_found_behind_an_earlier_token_pass(tiny_bert: nn.Module) -> None:
    program = capture(tiny_bert)
    before = layers(program)
    for method in ("random", "received-attention", "tome", "pool", "cls-attention"):
        drop = parse_spec(f"token-drop:method={method},keep=0.6,layers=0")
        sites = drop.legality(program)
        assert isinstance(sites, list)
        stack = layers(drop.rewrite(program, sites))
        assert [layer.label for layer in stack.blocks] == [layer.label for layer in before.blocks]
        assert stack.outside == ()
        assert stack.end.name == before.end.name


def test_masks_and_positions_carry_no_content(tiny_bert: nn.Module) -> None:
    program: Program = capture(tiny_bert)
    flow = content_flow(program)
    for node in program.graph.nodes:
        if is_attention(node):
            assert set(flow.predecessors(node)) == set(node.args[:3])


@pytest.mark.parametrize("name", DECODERS)
def test_a_cache_leaves_the_layers_what_they_were(name: str) -> None:
    before = layers(decoder_program(name))
    program, _ = run(decoder_program(name), ["kv-cache", "speculate"])
    after = layers(program)
    assert [layer.label for layer in after.blocks] == [layer.label for layer in before.blocks]
    assert after.outside == ()
    assert str(after.stream[0].target) in [spec.name for spec in program.called_with]
