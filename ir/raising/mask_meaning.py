"""What an attention mask means: proved by evaluating the code that makes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..dialect import is_dialect
from ..dialect.attention import visible_keys
from ..program import Program
from ..shapes import Size, expression, same_size
from ._cone import Cone, Sizes, constant
from ._pattern import arguments, calls, sizes

aten = torch.ops.aten

# Added to a logit, a number this low leaves a probability of exactly zero.
HIDDEN = -1e4
# Lengths at which a mask is evaluated; a literal beyond the larger one could be a window that never shows.
SHORT, LONG = 9, 2048


@dataclass(frozen=True)
class Meaning:
    """Visibility as ``tersor.attention`` states it.

    Attributes:
        padding: node of shape ``[batch, keys]`` that says which keys are real.
        inverted: the node is true for padding instead.
    """

    causal: bool = False
    window: int = 0
    padding: fx.Node | None = None
    inverted: bool = False


def split_mask(
    program: Program, mask: fx.Node, queries: Size, keys: Size
) -> tuple[Meaning, tuple[fx.Node, ...]] | None:
    """The part of ``mask`` whose meaning is proved, and the additive terms that stay; None where nothing is proved.

    Follows sums and the ways of writing "bias where visible, else very low".
    """
    meaning = mask_meaning(program, mask, queries, keys)
    if meaning is not None:
        return meaning, ()
    hidden: fx.Node | None = None
    visible: fx.Node | None = None
    if calls(mask, aten.where):
        visible, bias, low = mask.args[:3]  # type: ignore[assignment]
    elif calls(mask, aten.masked_fill):
        bias, hidden, low = mask.args[:3]  # type: ignore[assignment]
    elif calls(mask, aten.add.Tensor) and not mask.kwargs:
        return _split_sum(program, mask, queries, keys)
    elif calls(mask, aten.to.dtype, aten.contiguous.default, aten.clone.default, aten.expand.default):
        inner = mask.args[0]
        assert isinstance(inner, fx.Node)
        split = split_mask(program, inner, queries, keys)
        same_type = inner.meta["val"].dtype == mask.meta["val"].dtype
        return split if split is not None and same_type else None
    else:
        return None
    if not isinstance(bias, fx.Node) or not _is_low(program, low):
        return None
    condition = visible if visible is not None else hidden
    if condition is None:
        return None
    meaning = mask_meaning(program, condition, queries, keys, inverted=hidden is not None)
    return None if meaning is None else (meaning, (bias,))


def _split_sum(
    program: Program, mask: fx.Node, queries: Size, keys: Size
) -> tuple[Meaning, tuple[fx.Node, ...]] | None:
    left, right = mask.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    for part, other in ((right, left), (left, right)):
        split = split_mask(program, part, queries, keys)
        if split is not None:
            meaning, biases = split
            return meaning, (other, *biases)
    return None


def mask_meaning(
    program: Program, mask: fx.Node, queries: Size, keys: Size, inverted: bool = False
) -> Meaning | None:
    """The meaning of a whole mask, bool (true = visible, or hidden when ``inverted``) or additive; None if unproved.

    The mask's code is run at two lengths, without padding and with several paddings; what comes out must equal
    the stated meaning everywhere; rows of padded queries are excepted where the padding is an input of the program.
    """
    if is_dialect(mask, "token_mask") and not inverted:
        stated = arguments(mask)
        if _same(stated["queries"], queries) and _same(stated["keys"], keys):
            return Meaning(stated["causal"], stated["window"], stated["padding"])
        return None
    cone = Cone.above(program, mask)
    if cone is None:
        return None
    for padding in _padding_candidates(program, cone, keys):
        part = cone.cut_at(padding)
        if part is None:
            continue
        return _prove(program, part, padding, queries, keys, inverted)
    return None


def _prove(
    program: Program, cone: Cone, padding: fx.Node | None, queries: Size, keys: Size, inverted: bool
) -> Meaning | None:
    trials = _lengths(program, cone, queries, keys)
    if trials is None:
        return None
    proved: Meaning | None = None
    for trial in trials:
        rows, columns = trial.of(queries), trial.of(keys)
        batch = 1 if padding is None else trial.of(sizes(padding)[0])
        for real in _paddings(padding, batch, columns):
            for flipped in (False,) if padding is None else (False, True):
                visible = _evaluate(cone, trial, padding, real, flipped, inverted, rows, columns)
                if visible is None:
                    return None
                if proved is None:
                    pattern = _band(visible[0])
                    if pattern is None:
                        continue
                    proved = Meaning(*pattern, padding, flipped)
                rows_count = padding is None or padding.op != "placeholder" or rows != columns
                if proved.inverted == flipped and not _agrees(proved, visible, real, rows_count):
                    return None
        if proved is None:
            return None
    return proved


def _evaluate(
    cone: Cone,
    trial: Sizes,
    padding: fx.Node | None,
    real: Tensor | None,
    flipped: bool,
    inverted: bool,
    rows: int,
    columns: int,
) -> Tensor | None:
    """Visibility ``[batch, rows, columns]``; None where the value is no mask or differs between heads."""
    given = {}
    if padding is not None and real is not None:
        given[padding] = (real ^ flipped).to(padding.meta["val"].dtype)
    value = cone.run(trial, given)
    if value is None or not isinstance(value, Tensor) or not 2 <= value.dim() <= 4:
        return None
    if value.dtype == torch.bool:
        visible = value ^ inverted
    elif value.is_floating_point() and not inverted:
        visible = value == 0
        if not bool((visible | (value <= HIDDEN)).all()):
            return None
    else:
        return None
    visible = visible if visible.dim() == 4 else visible[(None,) * (4 - visible.dim())]
    if visible.shape[2] not in (1, rows) or visible.shape[3] not in (1, columns):
        return None
    visible = visible.expand(*visible.shape[:2], rows, columns)
    return visible[:, 0] if bool((visible == visible[:, :1]).all()) else None


def _band(visible: Tensor) -> tuple[bool, int] | None:
    """``(causal, window)`` of a visibility ``[rows, columns]`` that has no padding in it."""
    rows, columns = visible.shape
    if not bool(visible.any()):
        return None
    causal = rows > 1 and not bool(visible.triu(1).any())
    seen = visible[rows - 1].nonzero()
    first = int(seen[0]) if len(seen) else 0
    window = 0 if first == 0 else rows - first
    expected = visible_keys(rows, columns, visible.device, None, None, None, causal, window)
    same = bool(visible.all()) if expected is None else torch.equal(expected[0, 0], visible)
    return (causal, window) if same else None


def _agrees(meaning: Meaning, visible: Tensor, real: Tensor | None, padded_rows: bool) -> bool:
    rows, columns = visible.shape[-2:]
    expected = visible_keys(rows, columns, visible.device, real, None, None, meaning.causal, meaning.window)
    expected = torch.ones_like(visible) if expected is None else expected[:, 0].expand_as(visible)
    differs = visible != expected
    if real is not None and not padded_rows:
        differs = differs & real[:, :, None]
    return not bool(differs.any())


def _paddings(padding: fx.Node | None, batch: int, columns: int) -> Iterator[Tensor | None]:
    """No padding first, then padding at the end, at the start, and in holes."""
    if padding is None:
        yield None
        return
    real = torch.ones(batch, columns, dtype=torch.bool)
    yield real
    behind, before, holes = real.clone(), real.clone(), real.clone()
    behind[-1, columns // 2 + 1 :] = False
    before[-1, : columns // 3] = False
    holes[-1, 1::3] = False
    yield from (behind, before, holes)


def _padding_candidates(program: Program, cone: Cone, keys: Size) -> Iterator[fx.Node | None]:
    """None when no input's value is read; else nodes ``[batch, keys]`` of the cone, nearest the inputs first.

    Trials give a candidate zeros and ones, which is all that a bool can hold; an integer counts only as an input
    whose example holds nothing else, because ids would be taken for a mask otherwise.
    """
    if not cone.inputs:
        yield None
        return
    for node in cone.nodes:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() != 2 or not same_size(value.shape[1], keys):
            continue
        if value.dtype == torch.bool or is_mask_input(program, node):
            yield node


def is_mask_input(program: Program, node: fx.Node) -> bool:
    """Whether ``node`` is an input of integers or bools whose example is all zeros and ones."""
    example = program.example_inputs.get(str(node.target)) if node.op == "placeholder" else None
    return (
        example is not None
        and not example.is_floating_point()
        and bool(((example == 0) | (example == 1)).all())
    )


def _lengths(program: Program, cone: Cone, queries: Size, keys: Size) -> list[Sizes] | None:
    """A short and a long trial; None when a literal of the code could be a window longer than any trial."""
    symbols = expression(queries).free_symbols | expression(keys).free_symbols
    limits = [program.ranges.get(program.symbols.get(str(s), ""), (1, None))[1] for s in symbols]
    limit = min((n for n in limits if n is not None), default=None)
    literal = max((n for n in cone.literals if n < 2**31 - 1), default=0)
    longest = max(4 * SHORT, 2 * literal + 3)
    if limit is not None:
        longest = min(longest, limit)
    elif symbols and longest > 2 * LONG:
        return None
    lengths = sorted({min(SHORT, longest), longest}, reverse=True) if symbols else [SHORT]
    return [Sizes(program, n, symbols) for n in lengths]


def _is_low(program: Program, value: Any) -> bool:
    number = constant(program, value)
    return number is not None and number <= HIDDEN


def _same(size: Any, other: Size) -> bool:
    if isinstance(size, fx.Node):
        size = size.meta["val"]
    return same_size(size, other)
