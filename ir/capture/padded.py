"""Compare a captured Program with the model where tokens are padding, which no example need hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from ..analyses.attention_facts import operand
from ..analyses.layers import is_attention
from ..errors import CaptureError
from ..evaluate import sources_of
from ..program import Program
from ..raising.mask_meaning import is_mask_input
from ..structure import Structure
from .check import compare_on


def wrong_at_padding(program: Program, model: Callable[..., Any]) -> str | None:
    """What differs from the model where rows are padded on the right or on the left; None where nothing does.

    What a model computes at padding is nobody's result as long as no other result is made of it.
    """
    for inputs in _padded(program):
        try:
            expected = model(**inputs)
        except (RuntimeError, ValueError, IndexError):
            continue  # A model that takes no such padding is not asked for it.
        if any(bool(value.isnan().any()) for value in Structure.flatten(expected)):
            continue
        try:
            compare_on(program, inputs, expected)
        except CaptureError as error:
            return str(error)
    return None


def _padded(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example with some tokens of each row padded, other numbers of them in each."""
    names = {str(node.target) for node in _masks(program)}
    if not names:
        return
    for left in (False, True):
        yield {
            spec.name: _with_padding(program.example_inputs[spec.name], left)
            if spec.name in names
            else program.example_inputs[spec.name]
            for spec in program.called_with
        }


def _masks(program: Program) -> list[fx.Node]:
    """Inputs ``[batch, tokens]`` of zeros and ones by which attention is told what to see."""
    read = [
        operand(node, name)
        for node in program.graph.nodes
        if is_attention(node)
        for name in ("mask", "padding")
    ]
    above = sources_of(node for node in read if node is not None)
    return [node for node in above if is_mask_input(program, node) and node.meta["val"].dim() == 2]


def _with_padding(example: Tensor, left: bool) -> Tensor:
    rows, tokens = example.shape
    count = (tokens - 1 - torch.arange(rows) % max(1, tokens // 2)).clamp(min=1)[:, None]
    place = torch.arange(tokens)[None]
    real = place >= tokens - count if left else place < count
    return real.to(example.dtype)
