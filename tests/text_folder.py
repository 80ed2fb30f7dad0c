"""A small decoder in a folder with a tokenizer of its own: one token a byte, so that characters may take several."""

from __future__ import annotations

from pathlib import Path

import torch


def save_text_model(folder: Path, end: int | None = None, seed: int = 0, opening: str | None = None) -> Path:
    """A Llama of 2 layers over bytes, as ``save_pretrained`` writes it.

    Args:
        end: the token that ends a text.
        opening: the byte, as the tokenizer spells it, that it puts before every text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if opening is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{opening} $A", special_tokens=[(opening, alphabet.index(opening))]
        )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=end,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # an untrained model says one thing for ever
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder
