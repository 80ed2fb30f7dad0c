"""Small random decoders, one for each way of counting, masking and grouping that real ones have."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from architectures import LLAMA, VOCABULARY, huggingface
from torch import nn

from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.pipeline import run
from tersor.runtime.decoder import Decoder

_GPT = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
_NEO = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
    window_size=5, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_OPT = dict(
    vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0,
)  # fmt: skip
_GEMMA = dict(
    LLAMA, num_hidden_layers=4, num_key_value_heads=1, head_dim=8, sliding_window=4,
    layer_types=["sliding_attention", "full_attention"] * 2,
)  # fmt: skip
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _GEMMA),  # windows in some layers, two rotary tables
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", dict(LLAMA, head_dim=8, sliding_window=4)),  # softcap
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", dict(LLAMA, head_dim=8)),
    "mistral": (
        "MistralConfig",
        "MistralForCausalLM",
        dict(LLAMA, sliding_window=5),
    ),  # windows in all layers
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT),  # learned positions, by index
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT),  # learned positions, by a running sum of the mask
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", dict(LLAMA, num_local_experts=4, sliding_window=None)),
    "gpt-neo": ("GPTNeoConfig", "GPTNeoForCausalLM", _NEO),  # windows by a sliced table of the model's own
    "gpt-neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {k: v for k, v in LLAMA.items() if "key" not in k}),
}
DECODERS = tuple(_MODELS)
# Pages that are smaller than windows and prompts.
PAGED = "kv-cache:layout=paged,page=4"
# One token, several, and more than any window.
PROMPTS = [[5], [7, 8, 9, 10, 11, 12], list(range(3, 34))]


@cache
def decoder(name: str) -> nn.Module:
    """The model, in evaluation mode, over ids below ``VOCABULARY`` and up to 64 tokens."""
    config, model, options = _MODELS[name]
    return huggingface(config, model, **options)()


@cache
def decoder_program(name: str) -> Program:
    """The model captured, without a cache."""
    return capture(decoder(name))


@cache
def decoder_on(name: str, target: str, cache_spec: str = "kv-cache", speculate: str = "speculate") -> Decoder:
    """What runs the model with a cache on a target, trees of tokens too; with these specs."""
    program, _ = run(decoder_program(name), [cache_spec, speculate])
    return Decoder(program, find_target(target).lower)


def rows(lengths: list[int], side: str = "right", seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random ids, padded to the longest on one side."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(3, VOCABULARY, (len(lengths), longest), generator=generator)
    place = torch.arange(longest)[None]
    count = torch.tensor(lengths)[:, None]
    mask = (place < count if side == "right" else place >= longest - count).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
