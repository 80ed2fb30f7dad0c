"""PyTorch's fused encoder layers, which give other rows for padding than the layers that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..analyses.attention_facts import operand
from ..analyses.layers import is_attention
from ..errors import CaptureError
from ..program import Program
from .check import Samples, compare_on
from .padded import padded

_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def explain_fused_layers(
    program: Program, model: nn.Module, call: Callable[..., Any], enabled: bool, samples: Samples | None
) -> list[str]:
    """One line where the model's results are others while it uses them, at what may be padding.

    Args:
        call: the model, as it is called without them.
        enabled: whether the caller lets PyTorch use them.

    Raises:
        CaptureError: results are that are made of real tokens too.
    """
    if not enabled or not any(isinstance(module, _FUSED) for module in model.modules()):
        return []
    told = _difference(program, call, samples)
    if told is None:
        return []
    what = told.partition(": ")[0]
    why = "PyTorch's fused layers (torch.backends.mha), which the model uses without gradients, give something else"
    if not any(operand(node, "padding") for node in program.graph.nodes if is_attention(node)):
        # What is padding is not known.
        return [f"the Program computes what the layers compute one by one; {why}: {what}"]
    raise CaptureError(
        f"{why} where rows are padded than the layers one by one, and outputs are made of it: {what}. Let them read "
        "real tokens alone (a mean over these), or call torch.backends.mha.set_fastpath_enabled(False) first: then the "
        "model computes what its layers do one by one, and so does the Program"
    )


def _difference(program: Program, call: Callable[..., Any], samples: Samples | None) -> str | None:
    """What differs, on the example, a sample, or either with padding."""
    given = (program.example_inputs, *(() if samples is None else samples(program)), *padded(program, True))
    with _fused():
        for inputs in given:
            try:
                compare_on(program, inputs, call(**inputs))
            except CaptureError as error:
                return str(error)
            except (RuntimeError, ValueError, IndexError):
                continue  # What the model does not take shows nothing.
    return None


@contextmanager
def _fused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
