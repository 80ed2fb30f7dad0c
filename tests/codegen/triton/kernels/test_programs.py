"""Whole models with dropped tokens: the Triton target computes what the torch target does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.codegen.target import find_target
from tersor.codegen.triton import TritonExecutable
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.registry import find_methods, find_passes
from tersor.passes.tokens.method import TokenMethod


@cache
def vision() -> Program:
    """The shape of a ViT-S: class token, norms before attention and MLP, static length."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return capture(ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).eval())


@cache
def text() -> Program:
    """The shape of a MiniLM: norms after attention and MLP, padding, any length."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return capture(BertModel(BertConfig(vocab_size=100, max_position_embeddings=64, **sizes)).eval())


@cache
def decoder() -> Program:
    """Causal, grouped-query, root-mean-square norms."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return capture(LlamaForCausalLM(LlamaConfig(vocab_size=100, num_key_value_heads=2, **sizes)).eval())


def dropped(program: Program, method: str, **options: Any) -> Program:
    token_drop: Any = find_passes()["token-drop"]
    chosen: Any = find_methods(TokenMethod)[method]
    made = token_drop(method=chosen(**options), keep=(0.6,), layers=(1,))
    sites = made.legality(program)
    assert isinstance(sites, list), sites
    return made.rewrite(program, sites)  # type: ignore[no-any-return]


def text_inputs(program: Program, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    longest = max(lengths)
    ids = torch.randint(0, 100, (len(lengths), longest))
    mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).to(torch.int64)
    known = {"input_ids": ids, "attention_mask": mask}
    return {spec.name: known.get(spec.name, torch.zeros_like(ids)) for spec in program.inputs}


def assert_equal_targets(program: Program, inputs: dict[str, Tensor]) -> TritonExecutable:
    executable: Any = find_target("triton").lower(program)
    want = find_target("torch").lower(program).run(inputs)
    for got, expected in zip(executable.run(inputs), want, strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert executable.fallbacks == ()
    return executable  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("method", "options", "lengths"),
    [
        ("zero-tprune", {"early": 3}, (9,)),
        ("zero-tprune", {"early": 3}, (17, 5)),
        ("zero-tprune", {"early": 3}, (9, 0, 5)),
        ("received-attention", {}, (1,)),
        ("received-attention", {}, (13, 13, 2)),
        ("received-attention", {}, (7, 0)),
    ],
    ids=str,
)
def test_a_minilm_shape_is_equal_at_odd_lengths_and_with_padding(
    method: str, options: dict[str, int], lengths: tuple[int, ...]
) -> None:
    program = dropped(text(), method, **options)
    executable = assert_equal_targets(program, text_inputs(program, lengths))
    assert executable.kernels[:3] == ("attention", "attention_importance", "select_gather_norm")


@pytest.mark.parametrize(
    ("method", "options", "batch"),
    [
        ("cls-attention", {}, 1),
        ("received-attention", {}, 3),
        ("tome", {}, 1),
        ("zero-tprune", {"early": 3}, 1),
    ],
    ids=str,
)
def test_a_vit_shape_is_equal(method: str, options: dict[str, int], batch: int) -> None:
    program = dropped(vision(), method, **options)
    executable = assert_equal_targets(program, {"pixel_values": torch.randn(batch, 3, 32, 32)})
    assert executable.kernels[0] == "attention"
    assert "select_gather_norm" in executable.kernels


@pytest.mark.parametrize("lengths", [(7,), (15, 6)], ids=str)
def test_a_decoder_shape_is_equal(lengths: tuple[int, ...]) -> None:
    program = dropped(decoder(), "received-attention")
    executable = assert_equal_targets(program, text_inputs(program, lengths))
    assert executable.kernels == ("attention", "attention_importance", "select_gather_norm")


def test_a_model_without_dropping_is_equal() -> None:
    executable = assert_equal_targets(text(), text_inputs(text(), (11, 4)))
    assert executable.kernels == ("attention", "attention")
