"""FLOPs against torch's counter and against hand counts; bytes and rooflines against hand counts."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from random_programs import Config, build, configs
from token_streams import BATCH, TOKENS, WIDTH, graph_of
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tersor.ir.analyses.cost import Machine, cost
from tersor.ir.builder import Builder
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program

aten = torch.ops.aten
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
}
VISION = {**{k: v for k, v in SMALL.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
TEXT_DIMS = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask")}

MODELS = [
    ("Bert", SMALL),
    ("Roberta", SMALL),
    ("Electra", SMALL),
    ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100}),
    ("ViT", VISION),
    ("Dinov2", VISION),
    ("SiglipVision", VISION),
    ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}),
    ("Llama", GROUPED),
    ("Qwen3", GROUPED),
    ("Gemma2", GROUPED),
]


def inputs_for(config: dict[str, Any], batch: int, tokens: int) -> dict[str, torch.Tensor]:
    if "image_size" in config:
        return {"pixel_values": torch.randn(batch, 3, 32, 32)}
    return {
        "input_ids": torch.randint(3, 90, (batch, tokens)),
        "attention_mask": torch.ones(batch, tokens, dtype=torch.int64),
    }


def export(model: nn.Module, inputs: dict[str, torch.Tensor], dynamic: dict[str, dict[int, str]]) -> Program:
    return capture(model, inputs, dynamic)


@pytest.mark.parametrize(("name", "config"), MODELS, ids=[name for name, _ in MODELS])
def test_flops_and_parameters_agree_with_torch_at_other_sizes(name: str, config: dict[str, Any]) -> None:
    transformers = importlib.import_module("transformers")
    settings_ = {**config, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
    model = getattr(transformers, f"{name}Model")._from_config(
        getattr(transformers, f"{name}Config")(**settings_), attn_implementation="eager"
    )
    model = model.eval()
    text = "image_size" not in config
    dynamic = TEXT_DIMS if text else {"pixel_values": {0: "batch"}}
    counted = cost(export(model, inputs_for(config, 2, 7), dynamic))
    batch, tokens = 3, 11
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs_for(config, batch, tokens))
    sizes = {"batch": batch, "tokens": tokens} if text else {"batch": batch}
    assert counted.at(**sizes).flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    parameters = sum(p.numel() for p in model.parameters())
    # The Program's weights include buffers, such as rotary frequencies.
    assert counted.parameters == pytest.approx(parameters, rel=0.01)


def test_plain_attention_convolution_and_einsum_agree_with_torch() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 32, 8, 8)
            self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.patches(image).flatten(2).transpose(1, 2)
            x = x + nn.functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
            return torch.einsum("bnd,bmd->bnm", self.block(x), x)

    model = Mixed().eval()
    image = torch.randn(2, 3, 32, 32)
    program = export(model, {"image": image}, {})
    # Without its fused path, which the counter does not see into.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(image.clone().requires_grad_())
    assert cost(program).at().flops == counter.get_total_flops()


@settings(max_examples=10, deadline=None)
@given(configs(noise=False))
def test_flops_of_random_transformers_follow_the_formula(config: Config) -> None:
    counted = cost(build(config))
    width, tokens, batch = config.width, config.tokens, config.batch
    kv = config.kv_heads * config.head_dim
    matrices = 3 if config.mlp == "swiglu" else 2
    per_token = 2 * width * (2 * width + 2 * kv + matrices * 2 * width)
    layer = batch * tokens * (per_token + 2 * 2 * tokens * width)
    head = 2 * width * 13 * batch * tokens if config.output == "logits" else 0
    sizes = {"batch": batch, "tokens": tokens} if config.dynamic else {}
    assert counted.at(**sizes).flops == config.layers * layer + head


def test_bytes_count_weights_once_and_views_not_at_all() -> None:
    program = build(Config(layers=1, positions=False))
    by_node = cost(program).by_node
    x, weights = 4 * 2 * 7 * 8, 4 * (8 * 8 + 8)
    at = {"batch": 2, "tokens": 7}

    def moved(name: str) -> int:
        values = {s: at[s.name] for s in by_node[name].bytes.free_symbols}
        return int(by_node[name].bytes.xreplace(values))

    assert moved("linear_default") == x + weights + x
    assert moved("transpose_int") == 0
    assert moved("reshape_default") == 0
    assert moved("attention_default") == 4 * x
    assert moved("add_tensor") == 3 * x


def test_a_table_is_charged_by_the_rows_that_are_read() -> None:
    counted = cost(build(Config(layers=1, ids=True, dynamic=False))).by_node["embedding_default"]
    rows = 4 * 2 * 7 * 8
    assert counted.bytes == rows + 8 * 2 * 7 + rows


def test_a_weight_that_two_operators_read_is_moved_once() -> None:
    def twice(g: Builder, x: fx.Node) -> fx.Node:
        tied = g.weight("w", torch.randn(WIDTH, WIDTH))
        return g.call(aten.linear.default, g.call(aten.linear.default, x, tied), tied)

    program, _, last = graph_of(twice, False)
    by_node = cost(program).by_node
    rows, weight = 4 * BATCH * TOKENS * WIDTH, 4 * WIDTH * WIDTH
    first: Any = last.args[0]
    assert by_node[first.name].bytes == rows + weight + rows
    assert by_node[last.name].bytes == rows + rows


def test_gathered_tokens_are_charged_by_those_that_are_kept() -> None:
    def kept(g: Builder, x: fx.Node) -> fx.Node:
        index = g.weight("kept", torch.zeros(BATCH, 2, dtype=torch.int64))
        return g.op("gather_tokens", g.mul(x, 2.0), index, 1)

    program, _, gather = graph_of(kept, False)
    # The index is read as the weight that it is.
    rows, index = 4 * BATCH * 2 * WIDTH, 8 * BATCH * 2
    assert cost(program).by_node[gather.name].bytes == rows + index + rows


@pytest.mark.parametrize("batched", [False, True], ids=["rows", "batch"])
def test_every_row_of_a_grouped_product_meets_one_matrix(batched: bool) -> None:
    groups, columns = BATCH, 16

    def grouped(g: Builder, x: fx.Node) -> fx.Node:
        x = g.call(aten.to.dtype, x, torch.bfloat16)
        experts = g.weight("experts", torch.randn(groups, WIDTH, columns, dtype=torch.bfloat16))
        if batched:
            return g.call(aten._grouped_mm.default, x, experts)
        ends = g.weight("ends", torch.tensor([5, BATCH * TOKENS], dtype=torch.int32))
        return g.call(aten._grouped_mm.default, g.call(aten.reshape.default, x, [-1, WIDTH]), experts, ends)

    program, _, _ = graph_of(grouped, False)
    assert cost(program).flops == 2 * BATCH * TOKENS * WIDTH * columns


def test_layers_add_up_to_the_whole() -> None:
    counted = cost(build(Config(layers=3)))
    by_layer = counted.by_layer
    assert {f"layers.{i}" for i in range(3)} <= set(by_layer)
    assert sum(layer.flops for layer in by_layer.values()).expand() == counted.flops
    assert by_layer["layers.0"].flops == by_layer["layers.2"].flops


def test_roofline_is_the_longer_of_arithmetic_and_traffic_per_operator() -> None:
    counted = cost(build(Config(layers=2, dynamic=False)))
    total = counted.at()
    assert counted.seconds(Machine(1.0, 1e30)) == pytest.approx(total.flops)
    assert counted.seconds(Machine(1e30, 1.0)) == pytest.approx(total.bytes)
    both = counted.seconds(Machine(1.0, 1.0))
    assert max(total.flops, total.bytes) <= both <= total.flops + total.bytes
    assert counted.seconds(Machine(1e30, 1e30, seconds_per_op=1.0)) == pytest.approx(len(counted.by_node))


def test_missing_and_unknown_sizes_are_named() -> None:
    counted = cost(build(Config(layers=1)))
    with pytest.raises(InputError, match=r"\(batch, tokens\); missing: tokens"):
        counted.at(batch=1)
    with pytest.raises(InputError, match="unknown: length"):
        counted.at(batch=1, tokens=2, length=3)


def test_an_operator_made_of_others_is_counted_at_symbolic_sizes() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(x, size=2 * x.shape[1])

    program = capture(Doubled(), {"x": torch.randn(2, 10, 4)}, {"x": {1: "tokens"}})
    assert cost(program).flops == 0
