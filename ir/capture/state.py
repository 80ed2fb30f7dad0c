"""Leave a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules import transformer

_DETECT = "_detect_is_causal_mask"


@contextmanager
def inference_state(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in evaluation mode and PyTorch's fused encoder layer is off.

    The fused layer (``torch._transformer_encoder_layer_fwd``) hides its attention in one opaque operator and, with
    a padding mask, returns other rows for padding than the layers it replaces.  Its layers do not compare the values
    of a mask to find out whether it is causal, which no traced mask can answer: they apply it as it is.
    """
    training = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    detect = getattr(transformer, _DETECT, None)
    try:
        if detect is not None:
            setattr(transformer, _DETECT, lambda mask, is_causal=None, size=None: is_causal is True)
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        if detect is not None:
            setattr(transformer, _DETECT, detect)
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in training:
            module.training = mode
