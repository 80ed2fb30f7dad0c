"""The architectures of the capture matrix: small random models, and how many attention layers each has.

``attention`` is read off the configuration, never off the captured graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

VOCABULARY = 120
WIDTH, HEADS, LAYERS, INNER = 32, 4, 2, 48


@dataclass(frozen=True)
class Architecture:
    """A row of the matrix.

    Attributes:
        build: makes the model, in evaluation mode.
        attention: attention layers that the configuration states.
        exact: the Program must equal the model to the bit: the same kernels run.  Attention written by hand is
            raised to a fused kernel, and experts run densely; those agree to rounding.
        fails: reason why this row is known to fail, empty when it must pass.
        told: what capture says of it then, in part.
    """

    name: str
    group: str
    build: Callable[[], nn.Module]
    attention: int = LAYERS
    inputs: Callable[[], Mapping[str, torch.Tensor]] | None = None
    exact: bool = True
    fails: str = ""
    told: str = ""


def huggingface(
    config_name: str, model_name: str, *, part: str = "", **config: Any
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        model = getattr(transformers, model_name)(getattr(transformers, config_name)(**config))
        for step in part.split(".") if part else ():
            model = getattr(model, step)
        return spread(model).eval()

    return build


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        create = importlib.import_module("timm").create_model
        torch.manual_seed(0)
        return spread(create(name, num_classes=10, **options)).eval()

    return build


def spread(model: nn.Module) -> nn.Module:
    """Give norms, biases and relative tables values of their own: an untrained model would hide swapped ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 2 and parameter.is_floating_point():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


BERT = dict(
    vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    intermediate_size=INNER, max_position_embeddings=64,
)  # fmt: skip
LLAMA = dict(BERT, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
VIT = dict(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, image_size=32,
    patch_size=8,
)  # fmt: skip
TIMM = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)


class PlainEncoder(nn.Module):
    """``nn.TransformerEncoder`` over embedded ids, with a key padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)


class HandWritten(nn.Module):
    """Causal self-attention as tutorials write it: a triangular buffer, ``masked_fill``, softmax, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(HandWrittenBlock() for _ in range(LAYERS))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = x + block(x, attention_mask)
        return x


class HandWrittenBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("triangle", torch.tril(torch.ones(1, 1, 64, 64)))

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (t.view(batch, tokens, HEADS, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / q.size(-1) ** 0.5
        scores = scores.masked_fill(self.triangle[:, :, :tokens, :tokens] == 0, float("-inf"))
        scores = scores.masked_fill(attention_mask[:, None, None, :] == 0, float("-inf"))
        weights = self.dropout(scores.softmax(dim=-1))
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))


def plain(kind: type[nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return kind().eval()

    return build


def text_inputs() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": torch.arange(18).reshape(2, 9) % VOCABULARY, "attention_mask": mask}


ENCODERS = [
    Architecture("bert", "encoder", huggingface("BertConfig", "BertModel", **BERT)),
    Architecture("roberta", "encoder", huggingface("RobertaConfig", "RobertaModel", **BERT)),
    Architecture("distilbert", "encoder", huggingface(
        "DistilBertConfig", "DistilBertModel", vocab_size=VOCABULARY, dim=WIDTH, n_layers=LAYERS, n_heads=HEADS,
        hidden_dim=INNER, max_position_embeddings=64,
    )),
    Architecture("electra", "encoder", huggingface("ElectraConfig", "ElectraModel", embedding_size=16, **BERT)),
    Architecture("mpnet", "encoder", huggingface("MPNetConfig", "MPNetModel", **BERT), exact=False),
    Architecture("deberta-v2", "encoder", huggingface(
        "DebertaV2Config", "DebertaV2Model", relative_attention=True, pos_att_type=["c2p", "p2c"],
        position_buckets=8, share_att_key=True, norm_rel_ebd="layer_norm", **BERT,
    ), exact=False),
    Architecture("modernbert", "encoder", huggingface(
        "ModernBertConfig", "ModernBertModel", **{**BERT, "num_hidden_layers": 3}, local_attention=8,
        global_attn_every_n_layers=3, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ), attention=3),
    Architecture("xlm-r", "encoder", huggingface("XLMRobertaConfig", "XLMRobertaModel", **BERT)),
    Architecture("t5 encoder", "encoder", huggingface(
        "T5Config", "T5EncoderModel", vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=INNER, num_layers=LAYERS,
        num_heads=HEADS,
    )),
    Architecture("whisper encoder", "encoder", huggingface(
        "WhisperConfig", "WhisperModel", part="encoder", vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=LAYERS,
        encoder_attention_heads=HEADS, decoder_layers=1, decoder_attention_heads=HEADS, encoder_ffn_dim=INNER,
        decoder_ffn_dim=INNER, num_mel_bins=8, max_source_positions=20, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1,
    )),
    Architecture("wav2vec2", "encoder", huggingface(
        "Wav2Vec2Config", "Wav2Vec2Model", hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, conv_dim=(16, 16), conv_kernel=(5, 3), conv_stride=(3, 2), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )),
]  # fmt: skip

VISION = [
    Architecture("vit", "vision", huggingface("ViTConfig", "ViTModel", **VIT)),
    Architecture("deit", "vision", huggingface("DeiTConfig", "DeiTModel", **VIT)),
    Architecture("beit", "vision", huggingface(
        "BeitConfig", "BeitModel", use_relative_position_bias=True, out_indices=[1], **VIT
    )),
    Architecture("dinov2", "vision", huggingface("Dinov2Config", "Dinov2Model", **VIT)),
    Architecture("dinov3", "vision", huggingface(
        "DINOv3ViTConfig", "DINOv3ViTModel", num_register_tokens=2, **VIT
    )),
    Architecture(
        "siglip", "vision", huggingface("SiglipVisionConfig", "SiglipVisionModel", **VIT), attention=LAYERS + 1,
        exact=False,
    ),
    Architecture("clip vision", "vision", huggingface("CLIPVisionConfig", "CLIPVisionModel", **VIT)),
    Architecture("timm vit_tiny", "vision", timm("vit_tiny_patch16_224", **TIMM)),
    Architecture("timm deit3", "vision", timm("deit3_small_patch16_224", **TIMM)),
    Architecture("timm eva02", "vision", timm("eva02_tiny_patch14_224", **TIMM)),
    Architecture("timm beitv2", "vision", timm("beitv2_base_patch16_224", **TIMM)),
    Architecture("timm vit_reg4", "vision", timm("vit_medium_patch16_reg4_gap_256", **TIMM)),
    Architecture(
        "timm cait",
        "vision",
        timm("cait_xxs24_224", **TIMM),
        attention=4,
        fails="its talking heads mix the scores of different heads between product and softmax",
        told="2 of 4 attention layers: softmax attention: permute_1 in blocks.0.attn: between product and softmax lies",
    ),
    Architecture("timm vit_relpos", "vision", timm("vit_relpos_small_patch16_224", **TIMM)),
]  # fmt: skip

DECODERS = [
    Architecture("gpt2", "decoder", huggingface(
        "GPT2Config", "GPT2LMHeadModel", vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        n_positions=64, bos_token_id=1, eos_token_id=2,
    )),
    Architecture("opt", "decoder", huggingface(
        "OPTConfig", "OPTForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, ffn_dim=INNER, max_position_embeddings=64, word_embed_proj_dim=WIDTH,
    )),
    Architecture("gpt-neox", "decoder", huggingface("GPTNeoXConfig", "GPTNeoXForCausalLM", **BERT)),
    Architecture("gptj", "decoder", huggingface(
        "GPTJConfig", "GPTJForCausalLM", vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        n_positions=64, rotary_dim=4, bos_token_id=1, eos_token_id=2,
    ), exact=False),
    Architecture("bloom", "decoder", huggingface(
        "BloomConfig", "BloomForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS,
    ), exact=False),
    Architecture("falcon", "decoder", huggingface(
        "FalconConfig", "FalconForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
    ), exact=False),
    Architecture("llama", "decoder", huggingface("LlamaConfig", "LlamaForCausalLM", **LLAMA)),
    Architecture("mistral", "decoder", huggingface(
        "MistralConfig", "MistralForCausalLM", sliding_window=6, head_dim=8, **LLAMA
    )),
    Architecture("qwen2", "decoder", huggingface("Qwen2Config", "Qwen2ForCausalLM", **LLAMA)),
    Architecture("qwen3", "decoder", huggingface("Qwen3Config", "Qwen3ForCausalLM", head_dim=8, **LLAMA)),
    Architecture("gemma2", "decoder", huggingface(
        "Gemma2Config", "Gemma2ForCausalLM", head_dim=8, sliding_window=6, query_pre_attn_scalar=8,
        attn_implementation="eager", **LLAMA  # transformers 5.17's SDPA leaves the softcap out
    )),
    Architecture("gemma3", "decoder", huggingface(
        "Gemma3TextConfig", "Gemma3ForCausalLM", head_dim=8, sliding_window=6, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"], **LLAMA
    )),
    Architecture("phi3", "decoder", huggingface("Phi3Config", "Phi3ForCausalLM", **LLAMA)),
    Architecture("olmo2", "decoder", huggingface("Olmo2Config", "Olmo2ForCausalLM", **LLAMA)),
    Architecture("granite", "decoder", huggingface("GraniteConfig", "GraniteForCausalLM", **LLAMA)),
    Architecture("cohere", "decoder", huggingface("CohereConfig", "CohereForCausalLM", **LLAMA)),
    Architecture("stablelm", "decoder", huggingface("StableLmConfig", "StableLmForCausalLM", **LLAMA)),
    Architecture("gpt-neo", "decoder", huggingface(
        "GPTNeoConfig", "GPTNeoForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH, num_layers=LAYERS,
        num_heads=HEADS, attention_types=[[["global", "local"], 1]], window_size=5, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2,
    ), exact=False),
    Architecture("mixtral", "decoder", huggingface(
        "MixtralConfig", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **LLAMA
    ), exact=False),
    Architecture("qwen3-moe", "decoder", huggingface(
        "Qwen3MoeConfig", "Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        head_dim=8, **LLAMA
    ), exact=False),
]  # fmt: skip

PLAIN = [
    Architecture("nn.TransformerEncoder", "plain", plain(PlainEncoder), inputs=text_inputs, exact=False),
    Architecture("hand-written attention", "plain", plain(HandWritten), inputs=text_inputs, exact=False),
]

ARCHITECTURES: list[Architecture] = [*ENCODERS, *VISION, *DECODERS, *PLAIN]
