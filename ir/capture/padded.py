"""Compare a captured Program with the model where tokens are padding, which no example need hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from ..analyses.attention_facts import operand
from ..analyses.layers import is_attention
from ..errors import CaptureError
from ..evaluate import sources_of
from ..program import Program
from ..raising._cone import Cone
from ..raising._pattern import calls
from ..raising.mask_meaning import is_mask_input
from ..structure import Structure
from .check import compare_on
from .dims import example_at

aten = torch.ops.aten

# Tokens of a trial at most, for the sake of wide windows.
_LONGEST = 1024
# How many tokens of a row are real, in one of so many ways.
_COUNTS = 3


def wrong_at_padding(program: Program, model: Callable[..., Any]) -> str | None:
    """What differs from the model where rows are padded on the right or on the left; None where nothing does.

    What a model computes at padding is nobody's result as long as no other result is made of it.
    """
    for inputs in padded(program):
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


def hides(node: fx.Node) -> bool:
    """Whether it is attention that may hide keys."""
    if not is_attention(node):
        return False
    told = node.kwargs.get("causal", False) or node.kwargs.get("window", 0) > 0
    return bool(told) or bool(_operands(node))


def can_be_tried(program: Program) -> bool:
    """Whether padded rows of the example show what masks do: all are of zeros and ones, ``[batch, tokens]``."""
    # Inputs that are read, and not their sizes alone.
    cones = [Cone.above(program, node) for node in _told(program)]
    if any(cone is None for cone in cones):
        return False
    read = {node for cone in cones if cone is not None for node in cone.inputs}
    return read == set(_masks(program)) and next(padded(program), None) is not None


def padded(program: Program, by_ids: bool = False) -> Iterator[dict[str, Tensor]]:
    """The example with some tokens of each row padded, other numbers of them in each; nothing where none shows it.

    Args:
        by_ids: whether ids that attention is hidden by count as what shows it.
    """
    written = dict.fromkeys(_masks(program), 0) | (_padding_ids(program) if by_ids else {})
    masks = list(written)
    if not masks:
        return
    inputs = program.example_inputs
    # In half of the tokens a query must come to lie past its window.
    needed = (
        2 * max((n.kwargs.get("window", 0) for n in program.graph.nodes if is_attention(n)), default=0) + 2
    )
    if needed > 2 and any(inputs[str(node.target)].shape[1] < needed for node in masks):
        shapes = {spec.name: spec.shape for spec in program.called_with}
        lengths = {shapes[str(node.target)][1] for node in masks}
        if needed > _LONGEST or not all(_may_be(program, length, needed) for length in lengths):
            return
        inputs = example_at(program, dict.fromkeys(map(str, lengths), needed))
    names = {str(node.target): value for node, value in written.items()}
    for left, first in product((False, True), range(_COUNTS)):
        yield {
            spec.name: _with_padding(inputs[spec.name], names[spec.name], left, first)
            if spec.name in names
            else inputs[spec.name]
            for spec in program.called_with
        }


def _may_be(program: Program, length: int | str, needed: int) -> bool:
    if not isinstance(length, str):
        return False
    most = program.ranges.get(length, (1, None))[1]
    return most is None or most >= needed


def _told(program: Program) -> list[fx.Node]:
    """What tells attention what to see."""
    return [told for node in program.graph.nodes if is_attention(node) for told in _operands(node)]


def _operands(attention: fx.Node) -> list[fx.Node]:
    mask, padding = operand(attention, "mask"), operand(attention, "padding")
    return [node for node in (mask, padding) if node is not None]


def _masks(program: Program) -> list[fx.Node]:
    """Inputs ``[batch, tokens]`` of zeros and ones by which attention is told what to see."""
    above = sources_of(_told(program))
    return [
        node
        for node in program.graph.nodes
        if node in above and is_mask_input(program, node) and node.meta["val"].dim() == 2
    ]


def _padding_ids(program: Program) -> dict[fx.Node, int]:
    """Inputs ``[batch, tokens]`` by which attention is told what to see, as they are this number or not."""
    above = sources_of(_told(program))
    found: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if node in above and calls(node, aten.eq.Scalar, aten.ne.Scalar):
            ids, number = node.args[:2]
            if ids.op == "placeholder" and ids.meta["val"].dim() == 2 and isinstance(number, int):
                found[ids] = number
    return found


def _with_padding(example: Tensor, padding: int, left: bool, first: int) -> Tensor:
    """Rows of one real token, of half of them, and of all but one, in turns, which ``first`` begins.

    Real tokens are ones in what is all zeros and ones, and elsewhere the example's.
    """
    rows, tokens = example.shape
    counts = torch.tensor([1, (tokens + 1) // 2, max(1, tokens - 1)])
    count = counts[(torch.arange(rows) + first) % _COUNTS][:, None]
    place = torch.arange(tokens)[None]
    real = place >= tokens - count if left else place < count
    if padding == 0 and bool(((example == 0) | (example == 1)).all()):
        return real.to(example.dtype)
    return example.masked_fill(~real, padding)
