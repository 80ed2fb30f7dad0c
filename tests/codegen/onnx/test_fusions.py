"""Norms of heads and rotary embeddings: fewer operators where the form is known, the same numbers, and no guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.codegen.onnx import OnnxExecutable
from tersor.codegen.onnx.export import build
from tersor.codegen.onnx.session import runtime

WIDTH, HEADS = 16, 3


class Rotating(nn.Module):
    """Queries that are normed (or not), and rotated by their places."""

    def __init__(
        self, halves: str = "equal", turn: str = "half", norm: bool = True, own_places: bool = False
    ) -> None:
        super().__init__()
        self.halves, self.turn, self.norm, self.own_places = halves, turn, norm, own_places
        self.project = nn.Linear(24, HEADS * WIDTH, bias=False)
        self.scale = nn.Parameter(torch.rand(WIDTH))
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(WIDTH // 2) / WIDTH))

    def _turned(self, x: Tensor) -> Tensor:
        if self.turn == "pairs":
            return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        first, second = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
        if self.turn == "backwards":
            return torch.cat([second, -first], -1)
        return torch.cat([-second, first], -1)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        heads = self.project(x).view(batch, tokens, HEADS, WIDTH).transpose(1, 2)
        if self.norm:
            heads = heads * torch.rsqrt(heads.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.scale)
        if places is None:
            places = torch.arange(tokens, device=x.device)[None]
        angle = places[..., None].float() * self.frequencies
        both = torch.cat([angle, angle if self.halves == "equal" else angle + 1], -1)
        cosine, sine = (2 * both.cos()).unsqueeze(1), both.sin().unsqueeze(1)
        return heads * cosine + self._turned(heads) * sine


def captured(model: nn.Module, **inputs: Tensor) -> Any:
    dynamic = {name: {0: "batch", 1: "tokens"} for name in inputs}
    return tersor.capture(model.eval(), inputs, dynamic=dynamic)


def ops(program: Any, level: Any = "ort") -> Counter[str]:
    return Counter(node.op_type for node in build(program, level).graph)


def given(batch: int, tokens: int, places: bool) -> dict[str, Tensor]:
    x = {"x": torch.randn(batch, tokens, 24)}
    return x | {"places": torch.randint(0, 50, (batch, tokens))} if places else x


@pytest.mark.parametrize("own_places", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("norm", [False, True], ids=["bare", "normed"])
@pytest.mark.parametrize("level", ["ort", "portable"])
def test_rotation_is_one_operator_and_gives_the_models_numbers(
    own_places: bool, norm: bool, level: Any
) -> None:
    model = Rotating(norm=norm)
    program = captured(model, **given(2, 5, own_places))
    assert ops(program, level)["RotaryEmbedding"] == (level == "ort")
    assert ops(program, level)["Neg"] == (level != "ort")
    runs = OnnxExecutable.of(program, ops=level)
    for batch, tokens in ((2, 5), (1, 1), (4, 3), (1, 9)):
        inputs = given(batch, tokens, own_places)
        with torch.no_grad():
            torch.testing.assert_close(runs.run(inputs)[0], model(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [{"halves": "unequal"}, {"turn": "pairs"}, {"turn": "backwards"}],
    ids=lambda o: "-".join(o.values()),
)
def test_what_only_looks_alike_stays_written_out(other: dict[str, str]) -> None:
    model = Rotating(**other)  # type: ignore[arg-type]
    program = captured(model, **given(2, 5, places=False))
    assert not ops(program)["RotaryEmbedding"]
    inputs = given(3, 7, places=False)
    with torch.no_grad():
        found = OnnxExecutable.of(program).run(inputs)[0]
        torch.testing.assert_close(found, model(**inputs), rtol=1e-5, atol=1e-5)


def test_onnx_runtime_finds_the_norm_of_heads(tmp_path: Path) -> None:
    program = captured(Rotating(), **given(2, 5, places=False))
    file = tmp_path / "optimised.onnx"
    options = runtime().SessionOptions()
    options.optimized_model_filepath = str(file)
    options.log_severity_level = 4
    OnnxExecutable.of(program).save(tmp_path)
    runtime().InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    found = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert found["SimplifiedLayerNormalization"] == 1
    assert not found["Pow"]


def _gemma() -> tuple[Any, Any]:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM, Gemma3TextConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
        intermediate_size=48, sliding_window=4, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _llama() -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM, LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48,
    )  # fmt: skip


def _neox() -> tuple[Any, Any]:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    # A quarter of each head is rotated.
    return GPTNeoXForCausalLM, GPTNeoXConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )


def _modernbert() -> tuple[Any, Any]:
    from transformers import ModernBertConfig, ModernBertModel

    return ModernBertModel, ModernBertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip


@pytest.mark.parametrize("of", [_gemma, _llama, _neox, _modernbert], ids=lambda f: f.__name__[1:])
def test_models_rotate_by_one_operator_each_for_queries_and_keys(of: Callable[[], tuple[Any, Any]]) -> None:
    kind, config = of()
    torch.manual_seed(0)
    model = kind(config).eval()
    program = tersor.capture(model)
    assert ops(program)["RotaryEmbedding"] == 4
    runs = OnnxExecutable.of(program)
    ids = torch.randint(3, 64, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask)[0]
    found = runs.run(program.bind(input_ids=ids, attention_mask=mask))[0]
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-5)
