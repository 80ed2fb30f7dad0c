"""PyTorch's fused encoder layers, which give other rows for padding than the layers that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..analyses.layers import is_attention
from ..analyses.real_tokens import real_tokens
from ..errors import CaptureError
from ..program import Program
from ..shapes import expression
from ..structure import Structure
from .check import Samples, compared
from .padded import hides_any, hiding, is_told

_WHY = (
    "PyTorch's fused layers (torch.backends.mha), which the model uses without gradients, give something else"
)
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)


def explain_fused_layers(
    program: Program, model: nn.Module, call: Callable[..., Any], enabled: bool, samples: Samples | None
) -> list[str]:
    """One line where the model's results are others while it uses them, at what may be padding, or was not tried.

    Args:
        call: the model, as it is called without them.
        enabled: whether the caller lets PyTorch use them.

    Raises:
        CaptureError: results are that are made of real tokens too.
    """
    if not enabled or not any(isinstance(module, _FUSED) for module in model.modules()):
        return []
    given = [program.example_inputs, *(() if samples is None else samples(program))]
    trials = list(hiding(program))
    told: dict[str, None] = {}
    for wrong, is_of_tokens in _differences(program, call, [*given, *trials]):
        what = wrong.partition(": ")[0]
        if not is_of_tokens:
            raise CaptureError(
                f"{_WHY} where rows are padded than the layers one by one, and outputs are made of it: {what}. Let "
                "them read real tokens alone (a mean over these), or call "
                "torch.backends.mha.set_fastpath_enabled(False) first: then the model computes what its layers do one "
                "by one, and so does the Program"
            )
        told[f"the Program computes what the layers compute one by one; {_WHY}: {what}"] = None
    if not trials and is_told(program) and not any(hides_any(program, inputs) for inputs in given):
        return [f"no inputs were found on which tokens are hidden, and none compared: there {_WHY}"]
    return list(told)[:1]


def _differences(
    program: Program, call: Callable[..., Any], given: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[str, bool]]:
    """What is wrong with an output, and whether it may be so at padding alone: it has entries for tokens."""
    for inputs in given:
        try:
            if any(wrong is not None for _, _, wrong in compared(program, inputs, call(**inputs))):
                continue  # Inputs that the Program does not stand for the model on tell nothing of fused layers.
            with _fused():
                result = call(**inputs)
            if any(bool(value.isnan().any()) for value in Structure.flatten(result)):
                continue  # A query that sees nothing, which the model has no number for.
            real = real_tokens(program, program.bind(**inputs))
            for name, _, wrong in compared(program, inputs, result):
                if wrong is not None:
                    yield wrong, name not in real and _has_tokens(program, name)
        except (CaptureError, RuntimeError, ValueError, IndexError):
            continue  # What either does not take shows nothing.


def _has_tokens(program: Program, output: str) -> bool:
    """Whether a dim of an output grows with the keys of an attention, or is as large where these do not vary."""
    place = [spec.name for spec in program.outputs].index(output)
    results: Any = program.output_node.args[0]
    sizes = [expression(size) for size in results[place].meta["val"].shape]
    keys = [expression(n.args[1].meta["val"].shape[2]) for n in program.graph.nodes if is_attention(n)]  # type: ignore[union-attr]
    symbols = set().union(*(size.free_symbols for size in keys))
    return any(size in keys or not symbols.isdisjoint(size.free_symbols) for size in sizes)


@contextmanager
def _fused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
