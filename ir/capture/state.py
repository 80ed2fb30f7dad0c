"""Leave a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference_state(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in evaluation mode and PyTorch's fused encoder layer is off.

    The fused layer (``torch._transformer_encoder_layer_fwd``) hides its attention in one opaque operator and, with
    a padding mask, returns other rows for padding than the layers it replaces.
    """
    training = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, mode in training:
            module.training = mode
