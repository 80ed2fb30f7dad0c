"""PyTorch's fused encoder layers, which give other rows for padding than the layers that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from ..program import Program
from .check import compare_on

_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def explain_fused_layers(
    program: Program, model: nn.Module, call: Callable[..., Any], enabled: bool
) -> list[str]:
    """One line where the model's results on the example are others while it uses them.

    Args:
        call: the model, as it is called without them.
        enabled: whether the caller lets PyTorch use them.
    """
    if not enabled or not any(isinstance(module, _FUSED) for module in model.modules()):
        return []
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        compare_on(program, program.example_inputs, call(**program.example_inputs))
    except CaptureError as error:
        what = str(error).partition(": ")[0]
        told = (
            "the Program computes what the layers compute one by one; PyTorch's fused layers "
            f"(torch.backends.mha), which the model uses without gradients, give something else: {what}"
        )
        return [told]
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return []
