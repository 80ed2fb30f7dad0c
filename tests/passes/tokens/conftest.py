"""Small models of every kind that token dropping meets, captured once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.contract import Refusal
from tersor.passes.spec import parse_spec

SIZES: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
IMAGES: dict[str, Any] = dict(SIZES, image_size=32, patch_size=8)
TEXT: dict[str, Any] = dict(SIZES, vocab_size=100, max_position_embeddings=64)


@cache
def model(kind: str) -> nn.Module:
    """``bert``, ``vit``, ``registers`` (DINOv2 with 2), ``llama``, ``gemma`` (windows of 4),
    ``t5`` (a bias for every pair of positions) or ``neox`` (attention beside the MLP)."""
    import transformers as t

    torch.manual_seed(0)
    made: nn.Module = {
        "bert": lambda: t.BertModel(t.BertConfig(**TEXT)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**IMAGES)),
        "registers": lambda: t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**IMAGES, num_register_tokens=2)
        ),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, num_key_value_heads=2)),
        "gemma": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(
                **TEXT,
                num_key_value_heads=1,
                head_dim=8,
                sliding_window=4,
                layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            )
        ),
        "t5": lambda: t.T5EncoderModel(
            t.T5Config(
                vocab_size=100,
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=3,
                num_heads=4,
                is_encoder_decoder=False,
            )
        ),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**TEXT)),
    }[kind]()
    return made.eval()


def text(batch: int = 2, tokens: int = 12, *, left: bool = False) -> dict[str, Tensor]:
    """Token ids whose last row is four short."""
    ids = torch.randint(3, 90, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones(batch, tokens, dtype=torch.int64)
    mask[-1, slice(0, 4) if left else slice(tokens - 4, None)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@cache
def program(kind: str) -> Program:
    if kind in ("vit", "registers"):
        return capture(
            model(kind),
            {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))},
        )
    return capture(model(kind), text())


@pytest.fixture(scope="session")
def captured() -> Callable[[str], Program]:
    return program


@pytest.fixture(scope="session")
def models() -> Callable[[str], nn.Module]:
    return model


@pytest.fixture(scope="session")
def texts() -> Callable[..., dict[str, Tensor]]:
    return text


@pytest.fixture(scope="session")
def dropped() -> Callable[[Program, str], Program]:
    """``dropped(program, spec)``: the program after the pass; a refusal is an error."""

    def rewritten(program: Program, spec: str) -> Program:
        instance = parse_spec(spec)
        sites = instance.legality(program)
        assert not isinstance(sites, Refusal), str(sites)
        return instance.rewrite(program, sites)

    return rewritten


@pytest.fixture(scope="session")
def refused() -> Callable[[Program, str], Refusal]:
    """``refused(program, spec)``: why the pass may not act."""

    def reason(program: Program, spec: str) -> Refusal:
        found = parse_spec(spec).legality(program)
        assert isinstance(found, Refusal), found
        return found

    return reason
