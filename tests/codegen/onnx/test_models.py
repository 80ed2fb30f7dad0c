"""Whole small models in ONNX equal their Programs at batches, lengths and paddings other than the example's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from onnx_difference import difference
from torch import nn

from tersor.codegen.onnx import OnnxExecutable
from tersor.ir.capture import capture

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64))


def gemma3() -> nn.Module:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=64,
    )
    return Gemma3ForCausalLM(config)


def modernbert() -> nn.Module:
    from transformers import ModernBertConfig, ModernBertModel

    return ModernBertModel(
        ModernBertConfig(**SIZES, local_attention=4, pad_token_id=0, max_position_embeddings=64)
    )


def text(batch: int, tokens: int, left: bool) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    if left:
        mask[0, : tokens // 3] = 0
    else:
        mask[-1, tokens - tokens // 3 :] = 0
    return {"input_ids": torch.randint(1, 100, (batch, tokens)), "attention_mask": mask}


@pytest.mark.parametrize("make", [llama, gemma3, modernbert])
def test_text_models_at_other_shapes(make: Callable[[], nn.Module]) -> None:
    program = capture(make().eval(), text(2, 7, left=False))
    for ops in ("portable", "ort"):
        executable = OnnxExecutable.of(program, ops=ops, threads=1)
        for batch, tokens in ((1, 9), (3, 14), (2, 1)):
            for left in (False, True):
                assert difference(program, executable, text(batch, tokens, left)) < 1e-5


@pytest.mark.parametrize("ops", ["portable", "ort"])
def test_an_image_model_at_other_batches(tiny_vit: nn.Module, ops: Any) -> None:
    program = capture(tiny_vit, {"pixel_values": torch.randn(2, 3, 32, 32)})
    executable = OnnxExecutable.of(program, ops=ops, threads=1)
    for batch in (1, 5):
        assert difference(program, executable, {"pixel_values": torch.randn(batch, 3, 32, 32)}) < 1e-5


def test_half_precision_weights_stay_half_precision(tiny_llama: nn.Module) -> None:
    program = capture(tiny_llama.half(), text(2, 7, left=False))
    for ops in ("portable", "ort"):
        executable = OnnxExecutable.of(program, ops=ops, threads=1)
        assert difference(program, executable, text(3, 9, left=True)) < 5e-3
