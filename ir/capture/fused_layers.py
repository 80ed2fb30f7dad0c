"""PyTorch's fused encoder layers: what the model computes while it uses them, so that the Program does too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, partialmethod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ..errors import CaptureError
from ..program import Program
from ..structure import Structure
from .check import Computed, Samples
from .padded import hiding

_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
_written_out = nn.TransformerEncoder.forward


@contextmanager
def zeros_at_padding(enabled: bool) -> Iterator[None]:
    """Within the block ``nn.TransformerEncoder`` gives what it gives with fused layers, computed by plain ones.

    Without gradients it leaves padding out, as long as that is behind the tokens of every row of the batch, and puts
    zeros in its place before its last norm.  A float mask hides whatever it is not 0 for.

    Args:
        enabled: whether the caller lets PyTorch use fused layers.
    """
    with patch.object(nn.TransformerEncoder, "forward", partialmethod(_forward, enabled)):
        yield


def _forward(
    encoder: nn.TransformerEncoder,
    enabled: bool,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    if not enabled or torch.backends.mha.get_fastpath_enabled() or src_key_padding_mask is None:
        return _written_out(encoder, src, mask, src_key_padding_mask, is_causal)
    leaves_out = getattr(encoder, "use_nested_tensor", False) and src.dim() == 3 and mask is None
    if not leaves_out or is_causal or torch.is_autocast_enabled(src.device.type):
        return _written_out(encoder, src, mask, src_key_padding_mask, is_causal)
    padding = src_key_padding_mask
    if padding.dtype != torch.bool:
        padding = padding != 0
    behind = torch.arange(padding.shape[1], device=padding.device) >= (~padding).sum(1, keepdim=True)
    if getattr(encoder, "mask_check", True):
        left_out = padding & (padding == behind).all()
    else:  # As many tokens as are none of padding, wherever those are.
        left_out = padding = behind
    hidden = src
    for layer in encoder.layers:
        hidden = layer(hidden, src_key_padding_mask=padding)
    hidden = hidden.masked_fill(left_out[..., None], 0.0)
    return hidden if encoder.norm is None else encoder.norm(hidden)  # type: ignore[no-any-return]


def explain_fused_layers(
    program: Program, model: nn.Module, call: Callable[..., Any], enabled: bool, samples: Samples | None
) -> list[str]:
    """Compare with the model while it uses its fused layers; one line where results are others with gradients.

    On trials too, in which attention hides tokens.

    Args:
        call: the model, as it is called without them.
        enabled: whether the caller lets PyTorch use them.

    Raises:
        CaptureError: results are others at what is no padding.
    """
    if not enabled or not any(isinstance(module, _FUSED) for module in model.modules()):
        return []
    told: list[str] = []
    given = [program.example_inputs, *(() if samples is None else samples(program)), *hiding(program)]
    for inputs in given:
        try:
            computed = Computed.on(program, inputs)
            computed.compare(call(**inputs))
            with _fused():
                result = call(**inputs)
        except (CaptureError, RuntimeError, ValueError, IndexError):
            continue  # Inputs on which the Program does not stand for the model anyway tell nothing of fused layers.
        if any(bool(value.isnan().any()) for value in Structure.flatten(result)):
            continue  # A query that sees nothing, which the model has no number for.
        try:
            computed.compare(result)
        except CaptureError as error:
            raise CaptureError(
                "PyTorch's fused layers (torch.backends.mha), which the model uses without gradients, give something "
                f"else than the layers one by one: {str(error).partition(': ')[0]}. Call "
                "torch.backends.mha.set_fastpath_enabled(False) first: then the model computes what its layers do one "
                "by one, and so does the Program"
            ) from error
        told = told or _where_gradients_tell(computed, partial(call, **inputs))
    return told


def _where_gradients_tell(computed: Computed, call: Callable[[], Any]) -> list[str]:
    with patch.object(nn.TransformerEncoder, "forward", _written_out):
        plain = call()
    try:
        computed.compare(plain)
    except CaptureError as error:
        made = "outputs are made of padded rows, where fused layers, which run without gradients, put zeros"
        return [f"{made}: with gradients {str(error).partition(': ')[0]}"]
    return []


@contextmanager
def _fused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
