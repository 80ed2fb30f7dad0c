"""Capture of Hugging Face models through transformers' attention and mask interfaces.

While the model is exported its attention functions emit ``tersor::attention`` and its mask functions emit
``tersor::token_mask``, so that causality, window, scale and softcap arrive as facts and need no guessing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..dialect import DIALECT

NAME = "tersor"


def is_huggingface(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.modeling_utils") for kind in type(model).__mro__)


@contextmanager
def semantic_attention(model: nn.Module) -> Iterator[None]:
    """Within the block, ``model`` (and its parts with configs of their own) speaks the dialect."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, token_mask)
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [
        (c, getattr(c, "_attn_implementation_internal", None), getattr(c, "use_cache", None))
        for c in configs.values()
    ]
    try:
        for config, _, cache in before:
            config._attn_implementation_internal = NAME
            if cache is not None:
                config.use_cache = False
        yield
    finally:
        for config, implementation, cache in before:
            config._attn_implementation_internal = implementation
            if cache is not None:
                config.use_cache = cache


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: ``[batch, heads, tokens, head_dim]`` in, tokens before heads out.

    A mask, where there is one, already says what is causal and how wide the window is; without one the module's
    own ``is_causal`` decides, as in transformers' SDPA function.
    """
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    causal = causal and attention_mask is None
    if position_bias is not None and attention_mask is not None:
        # A float mask with the dtype's lowest number where transformers puts it: sums stay equal to the bit.
        if attention_mask.dtype == torch.bool:
            low = torch.finfo(query.dtype).min
            attention_mask = torch.where(attention_mask, position_bias, low)
        else:
            attention_mask = attention_mask + position_bias
    elif position_bias is not None:
        attention_mask = position_bias
    scale = float(scaling) if scaling is not None else float(query.shape[-1]) ** -0.5
    output = DIALECT["attention"].overload(
        query, key, value, attention_mask, None, None, None, s_aux,
        scale=scale, causal=causal, window=0, softcap=float(softcap or 0.0),
    )  # fmt: skip
    return output.transpose(1, 2).contiguous(), None


def token_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask function: the mask as one dialect op where its meaning can be proved.

    ``mask_function(batch, head, query, key)`` is evaluated far out on plain integers; what is no causal or
    window pattern there (chunks, packed sequences, image blocks) is built as an explicit mask instead.
    """
    from transformers.masking_utils import sdpa_mask

    meaning = prove_mask(mask_function)
    if meaning is None or not _is_zero(q_offset) or not _is_zero(kv_offset):
        kwargs["allow_is_causal_skip"] = kwargs["allow_is_bidirectional_skip"] = False
        return sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **kwargs
        )  # type: ignore[no-any-return]
    causal, window = meaning
    padding = attention_mask.bool() if attention_mask is not None and attention_mask.dim() == 2 else None
    if not causal and window == 0 and padding is None:
        return None
    device = kwargs.get("device", "cpu")
    return DIALECT["token_mask"].overload(padding, q_length, kv_length, causal, window, torch.device(device))  # type: ignore[no-any-return]


def _is_zero(offset: Any) -> bool:
    return isinstance(offset, int) and offset == 0


def prove_mask(mask_function: Any, reach: int = 1 << 15) -> tuple[bool, int] | None:
    """``(causal, window)`` of an index mask function, or None when it is neither.

    The visible keys of several queries, some far from the start, must be the same interval around the query.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        keys = torch.arange(2 * reach)
        zero = torch.zeros((), dtype=torch.int64)
        spans = set()
        for query in (reach, reach + 1, reach + 777, reach - 1234):
            try:
                seen = mask_function(zero, zero, torch.tensor(query), keys)
                seen = torch.as_tensor(seen).expand(keys.shape)
            except Exception:
                return None
            index = seen.nonzero()
            if index.numel() == 0 or int(index[-1] - index[0]) + 1 != index.numel():
                return None
            low, high = int(index[0]), int(index[-1])
            left = None if low == 0 else query - low
            right = None if high == 2 * reach - 1 else high - query
            spans.add((left, right))
        if len(spans) != 1:
            return None
        left, right = spans.pop()
    if right not in (None, 0) and right != left:
        return None
    if left is None:
        return (right == 0, 0) if right in (None, 0) else None
    return right == 0, left + 1
