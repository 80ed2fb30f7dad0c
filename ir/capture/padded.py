"""Compare a captured Program with the model where tokens are padding, which no example need hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice, product
from typing import Any

import torch
from torch import Tensor, fx

from ..analyses.attention_facts import operand
from ..analyses.layers import is_attention
from ..errors import CaptureError
from ..evaluate import evaluate, sources_of
from ..program import Program
from ..raising._cone import Cone
from ..raising._scores import LOW
from ..raising.mask_meaning import is_mask_input
from ..structure import Structure
from .check import compare_on
from .dims import example_at, with_one_row

# Tokens of a trial at most, for the sake of wide windows.
_LONGEST = 1024
# How many tokens of a row are real, in one of so many ways.
_COUNTS = 3
# Numbers that are tried as padding.
_FILLERS = 6


def wrong_at_padding(program: Program, model: Callable[..., Any]) -> str | None:
    """What differs from the model where rows are padded on the right or on the left; None where nothing does.

    What a model computes at padding is nobody's result as long as no other result is made of it.
    """
    alone = with_one_row(program)
    # The first of one row has half of its tokens padded.
    for inputs in chain(padded(program), islice(padded(alone), 1, 2) if alone is not None else ()):
        expected = run_on(model, inputs)
        if expected is None:
            continue
        try:
            compare_on(program, inputs, expected)
        except CaptureError as error:
            return str(error)
    return None


def run_on(model: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Any | None:
    """What the model makes of padded inputs; None where it takes no such padding, or makes no numbers of it."""
    try:
        result = model(**inputs)
    except Exception:  # Whatever its code raises there.
        return None
    return None if any(bool(value.isnan().any()) for value in Structure.flatten(result)) else result


def hides(node: fx.Node) -> bool:
    """Whether it is attention that may hide keys."""
    if not is_attention(node):
        return False
    told = node.kwargs.get("causal", False) or node.kwargs.get("window", 0) > 0
    return bool(told) or bool(told_by(node))


def padded(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example with some tokens of each row padded, other numbers of them in each; nothing where none shows it."""
    masks = mask_inputs(program)
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
    names = {str(node.target) for node in masks}
    for left, first in product((False, True), range(_COUNTS)):
        yield {
            spec.name: _real(inputs[spec.name], left, first).to(inputs[spec.name].dtype)
            if spec.name in names
            else inputs[spec.name]
            for spec in program.called_with
        }


def hiding(program: Program) -> Iterator[dict[str, Tensor]]:
    """The example with one input changed so that attention hides other tokens, however it is told to.

    Ids, masks and whatever else is ``[batch, tokens]`` get a number that may stand for padding in some places, lengths
    ``[batch]`` become others.
    """
    told = telling(program)
    fillers = likely_fillers(program, told)
    example = program.example_inputs
    before = evaluate(program, told, program.bind(**example))
    above = sources_of(told)
    for node in program.graph.nodes:
        name = str(node.target)
        if node not in above or node.op != "placeholder" or name not in example:
            continue
        for changed in _changed(example[name], fillers, before.values()):
            inputs = dict(example) | {name: changed}
            try:
                now = evaluate(program, told, program.bind(**inputs))
            except (RuntimeError, IndexError):
                continue  # Such as an id that is none of the table's.
            if any(not torch.equal(now[node], before[node]) for node in told):
                yield inputs


def likely_fillers(program: Program, told: Iterable[fx.Node]) -> list[int]:
    """Numbers that may stand for padding: those that masks are made with."""
    cones = [Cone.above(program, node) for node in told]
    literals = {int(n) for cone in cones if cone is not None for n in cone.literals if float(n).is_integer()}
    # Ids and masks are no numbers such as scores are hidden by; and what ids are below, is none of them itself.
    given = sorted({0, 1, *(n for n in literals if n > LOW)}, key=abs)
    below = sorted({n - 1 for n in literals if n > 0} - set(given))
    return [*given, *below][:_FILLERS]


def holds(dtype: torch.dtype, number: int) -> bool:
    """Whether a tensor of whole numbers or truth values may hold it."""
    if dtype.is_floating_point or dtype.is_complex:
        return False
    if dtype == torch.bool:
        return number in (0, 1)
    limits = torch.iinfo(dtype)
    return limits.min <= number <= limits.max


def _changed(given: Tensor, fillers: Iterable[float], told: Iterable[Tensor]) -> Iterator[Tensor]:
    # Of as many rows as there are counts, each has another.
    ways = list(product((False, True), range(max(1, _COUNTS + 1 - len(given)))))
    if given.dim() == 2:
        # A float mask is 1 and 0, or it is added to scores.
        some = (0, -torch.inf) if given.is_floating_point() else fillers
        for filler in some if given.is_floating_point() else filter(partial(holds, given.dtype), fillers):
            others = given[given != filler]
            # What is padding in the example is real in some of these.
            real = given if not others.numel() else torch.where(given == filler, others.flatten()[0], given)
            for left, first in ways:
                yield real.masked_fill(~_real(given, left, first), filler)
    elif given.dim() == 1 and not given.is_floating_point():
        tokens = max(value.shape[-1] for value in told)
        for _, first in ways[: len(ways) // 2]:
            yield _real(given.new_empty(len(given), tokens), False, first).sum(1).to(given.dtype)


def _may_be(program: Program, length: int | str, needed: int) -> bool:
    if not isinstance(length, str):
        return False
    most = program.ranges.get(length, (1, None))[1]
    return most is None or most >= needed


def telling(program: Program) -> list[fx.Node]:
    """What tells attention what to see, each once: layers share it."""
    told = (told for node in program.graph.nodes if is_attention(node) for told in told_by(node))
    return list(dict.fromkeys(told))


def told_by(attention: fx.Node) -> list[fx.Node]:
    mask, padding = operand(attention, "mask"), operand(attention, "padding")
    return [node for node in (mask, padding) if node is not None]


def mask_inputs(program: Program) -> list[fx.Node]:
    """Inputs ``[batch, tokens]`` of zeros and ones by which attention is told what to see."""
    above = sources_of(telling(program))
    return [
        node
        for node in program.graph.nodes
        if node in above and is_mask_input(program, node) and node.meta["val"].dim() == 2
    ]


def masks_beside(program: Program) -> set[str]:
    """Names of those of :func:`mask_inputs` that come with other inputs, and are tried with padding."""
    return {str(node.target) for node in mask_inputs(program)} if len(program.example_inputs) > 1 else set()


def _real(example: Tensor, left: bool, first: int) -> Tensor:
    """Bool ``[rows, tokens]``: rows of one real token, of half of them, and of all but one, in turns from ``first``."""
    rows, tokens = example.shape
    counts = torch.tensor([1, (tokens + 1) // 2, max(1, tokens - 1)])
    count = counts[(torch.arange(rows) + first) % _COUNTS][:, None]
    place = torch.arange(tokens)[None]
    return place >= tokens - count if left else place < count
