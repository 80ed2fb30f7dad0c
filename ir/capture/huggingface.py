"""Capture of Hugging Face models through transformers' attention and mask interfaces.

While the model is exported its attention functions emit ``tersor::attention`` and its mask functions emit
``tersor::token_mask``, so that causality, window, scale and softcap arrive as facts and need no guessing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..dialect import DIALECT

NAME = "tersor"


def is_huggingface(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.modeling_utils") for kind in type(model).__mro__)


def config_of(model: nn.Module) -> dict[str, Any]:
    """The model's configuration as plain JSON data; empty when it has none."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return {}
    return dict(json.loads(config.to_json_string(use_diff=False)))


# How many tokens a model reads, as its configuration says it.
CONTEXT = "max_position_embeddings"
# Settings of generation that name the tokens which end and pad a text.
TOKENS = ("eos_token_id", "pad_token_id")


def generation_of(model: nn.Module) -> dict[str, Any]:
    """What the model's ``generate`` goes by where its caller says nothing, as plain JSON data.

    Empty where it has no settings of its own.  Where it has, and they name no end or padding, there is none, whatever
    the configuration says: that is kept as None.
    """
    settings: Any = getattr(model, "generation_config", None)
    if not hasattr(settings, "to_json_string"):
        return {}
    # Those with an underscore say how the settings came about.
    found = {n: v for n, v in json.loads(settings.to_json_string()).items() if n[:1] != "_" and v is not None}
    found = {**dict.fromkeys(TOKENS), **found}
    if isinstance(settings.sequence_bias, dict):
        found["sequence_bias"] = [[list(tokens), bias] for tokens, bias in settings.sequence_bias.items()]
    # Where nothing says how many tokens there are to be, it counts.
    context = getattr(getattr(model, "config", None), CONTEXT, None)
    return found if context is None else {**found, CONTEXT: int(context)}


@contextmanager
def cache_free(model: nn.Module) -> Iterator[None]:
    """Within the block, ``model`` returns no key-value cache: a Program gets its cache from a pass."""
    before = [(config, config.use_cache) for config in _configs(model) if hasattr(config, "use_cache")]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, cache in before:
            config.use_cache = cache


@contextmanager
def packed_as_called(model: nn.Module, call: Callable[[], Any]) -> Iterator[None]:
    """Within the block, positions that restart keep sequences apart only where they do as the model is called.

    transformers looks for packed sequences where no cache is kept.  A model that keeps one when it is called looks for
    none, and must not begin to where :func:`cache_free` keeps it from it.

    Args:
        call: the model on its example, with its own settings.
    """
    if not any(getattr(config, "use_cache", False) for config in _configs(model)):
        yield
        return
    from transformers import masking_utils

    finds, looked = masking_utils.find_packed_sequence_indices, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        looked.append(True)
        return finds(*args, **kwargs)

    masking_utils.find_packed_sequence_indices = watched
    try:
        try:
            call()
        except Exception:
            looked.append(True)  # What it does not take is told where it is run to be captured.
        masking_utils.find_packed_sequence_indices = finds if looked else lambda *_, **__: None
        yield
    finally:
        masking_utils.find_packed_sequence_indices = finds


@contextmanager
def semantic_attention(model: nn.Module) -> Iterator[None]:
    """Within the block, ``model`` (and its parts with configs of their own) speaks the dialect.

    A part whose attention is written by hand never asks the attention interface; it keeps its implementation,
    and only that implementation's mask function is replaced, by one that returns what the part expects.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, token_mask)
    by_hand = {id(m.config) for m in model.modules() if is_huggingface(m) and not _asks_the_interface(m)}
    before = [
        (config, config._attn_implementation_internal)
        for config in _configs(model)
        if hasattr(config, "_attn_implementation_internal") and id(config) not in by_hand
    ]
    masks = {"sdpa": token_mask, "eager": additive_token_mask}
    shadowed = {name: MASKS._local_mapping[name] for name in masks if name in MASKS._local_mapping}
    try:
        for name, function in masks.items():
            MASKS[name] = function
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for name in masks:
            del MASKS[name]
        for name, function in shadowed.items():
            MASKS[name] = function
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of ``model`` and its parts, each once."""
    found = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    return list(found.values())


def _asks_the_interface(model: Any) -> bool:
    """Whether the model's attention calls whatever function the interface holds."""
    return bool(model._can_set_attn_implementation())


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
        explicit: Tensor | None = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **kwargs
        )
        return explicit
    causal, window = meaning
    padding = attention_mask.bool() if attention_mask is not None and attention_mask.dim() == 2 else None
    if not causal and window == 0 and padding is None:
        return None
    device = kwargs.get("device", "cpu")
    return DIALECT["token_mask"].overload(padding, q_length, kv_length, causal, window, torch.device(device))  # type: ignore[no-any-return]


def additive_token_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """transformers' mask function for attention written by hand: 0 where a key is visible, else the lowest number."""
    kwargs["allow_is_causal_skip"] = False
    visible = token_mask(*args, dtype=dtype, **kwargs)
    if visible is None:
        return None
    return torch.where(visible, torch.zeros((), dtype=dtype, device=visible.device), torch.finfo(dtype).min)


def _is_zero(offset: Any) -> bool:
    return isinstance(offset, int) and offset == 0


def prove_mask(mask_function: Any, reach: int = 1 << 15) -> tuple[bool, int] | None:
    """``(causal, window)`` of an index mask function, or None when it is neither.

    What a query far out sees states the pattern; queries from the first on, and others far out, must agree with it.
    """
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        keys = torch.arange(2 * reach)
        zero = torch.zeros((), dtype=torch.int64)

        def seen(query: int) -> Tensor:
            return torch.as_tensor(mask_function(zero, zero, torch.tensor(query), keys)).expand(keys.shape)

        try:
            pattern = _pattern(seen(reach).nonzero(), reach, 2 * reach)
            if pattern is None:
                return None
            causal, window = pattern
            for query in (*range(9), 63, 500, reach - 1234, reach + 1, reach + 777):
                distance = query - keys
                expected = distance >= 0 if causal else torch.ones_like(keys, dtype=torch.bool)
                if window:
                    expected = expected & (distance.abs() < window)
                if not torch.equal(seen(query), expected):
                    return None
        except Exception:
            # Functions over batch rows or packed sequences read tensors that have no values while tracing.
            return None
    return pattern


def _pattern(seen: Tensor, query: int, keys: int) -> tuple[bool, int] | None:
    """The pattern by which ``query`` sees the keys of index ``seen``, taken for an interval."""
    if not seen.numel():
        return None
    low, high = int(seen[0]), int(seen[-1])
    if high == keys - 1:
        return (False, 0) if low == 0 else None
    window = 0 if low == 0 else query - low + 1
    if high == query:
        return True, window
    return (False, window) if window and high - query + 1 == window else None
