"""What an attention mask means: proved by evaluating the code that makes it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from ..dialect import is_dialect
from ..dialect.attention import visible_keys
from ..operands import arguments
from ..program import Program
from ..shapes import Size, expression, same_size
from ._cone import Cone, Sizes, constant
from ._mask_scales import longest_scale
from ._padding_trials import (
    NONZERO,
    Reading,
    Rows,
    Seen,
    Trials,
    other_integers,
    readings,
    shows,
    zeros_and_ones,
)
from ._pattern import calls, sizes
from ._rows import tells_rows_apart
from ._scores import LOW

aten = torch.ops.aten

# Lengths at which a mask is evaluated; what needs a longer one to show is not proved.
SHORT, LONGEST = 9, 4100
# Beyond this length few values are tried where a shorter one is tried too, beyond the other in any case: what values
# mean does not depend on the length.
_MANY_VALUES, _MANY_VALUES_ALONE = 256, 1024


@dataclass(frozen=True)
class Meaning:
    """Visibility as ``tersor.attention`` states it.

    Attributes:
        padding: node of shape ``[batch, keys]`` that says which keys are real.
        reading: the comparison of ``padding`` that is true for real keys.
        domain: smallest and largest number in ``padding`` for which this holds; None where nothing bounds it.
        finite: whether finite numbers hide what is hidden.
    """

    causal: bool = False
    window: int = 0
    padding: fx.Node | None = None
    reading: Reading = NONZERO
    domain: tuple[int | None, int | None] = (None, None)
    finite: bool = False


def split_mask(
    program: Program, mask: fx.Node, queries: Size, keys: Size, padded_rows: bool = False
) -> tuple[Meaning, tuple[fx.Node, ...]] | None:
    """The part of ``mask`` whose meaning is proved, and the additive terms that stay; None where nothing is proved.

    Follows sums and the ways of writing "bias where visible, else very low".

    Args:
        padded_rows: the rows of padded queries count as those of others do, and so do rows that see nothing.
    """
    meaning = mask_meaning(program, mask, queries, keys, padded_rows=padded_rows)
    if meaning is not None:
        return meaning, ()
    hidden: fx.Node | None = None
    visible: fx.Node | None = None
    if calls(mask, aten.where):
        visible, bias, low = mask.args[:3]  # type: ignore[assignment]
    elif calls(mask, aten.masked_fill):
        bias, hidden, low = mask.args[:3]  # type: ignore[assignment]
    elif calls(mask, aten.add.Tensor) and not mask.kwargs:
        return _split_sum(program, mask, queries, keys, padded_rows)
    elif calls(mask, aten.to.dtype, aten.contiguous.default, aten.clone.default, aten.expand.default):
        inner = mask.args[0]
        assert isinstance(inner, fx.Node)
        split = split_mask(program, inner, queries, keys, padded_rows)
        same_type = inner.meta["val"].dtype == mask.meta["val"].dtype
        return split if split is not None and same_type else None
    else:
        return None
    number = constant(program, low)
    if not isinstance(bias, fx.Node) or number is None or number > LOW:
        return None
    condition = visible if visible is not None else hidden
    if condition is None:
        return None
    meaning = mask_meaning(program, condition, queries, keys, hidden is not None, number, padded_rows)
    return None if meaning is None else (meaning, (bias,))


def _split_sum(
    program: Program, mask: fx.Node, queries: Size, keys: Size, padded_rows: bool
) -> tuple[Meaning, tuple[fx.Node, ...]] | None:
    left, right = mask.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    for part, other in ((right, left), (left, right)):
        split = split_mask(program, part, queries, keys, padded_rows)
        if split is not None:
            meaning, biases = split
            return meaning, (other, *biases)
    return None


def mask_meaning(
    program: Program,
    mask: fx.Node,
    queries: Size,
    keys: Size,
    inverted: bool = False,
    fill: float = -math.inf,
    padded_rows: bool = False,
) -> Meaning | None:
    """The meaning of a whole mask, bool (true = visible, or hidden when ``inverted``) or additive; None if unproved.

    Hidden logits are ``fill`` where a mask is bool, and what is added to them otherwise.

    The mask's code is run at several lengths, without padding and with several paddings; what comes out must equal
    the stated meaning everywhere, but for the rows of padded queries that ``shows`` excepts.  An input of integers is
    tried at other numbers than 0 and 1 too, and read by the comparison that holds for all that make sense; where some
    make none, the meaning has a domain.
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
        kind = Rows.OTHER
        if padding is not None and not padded_rows and same_size(queries, keys):
            kind = Rows.OWN if padding.op == "placeholder" else Rows.ALIKE
        meaning = _prove(program, part, padding, queries, keys, inverted, fill, kind)
        if meaning is not None:
            return meaning
    return None


def _prove(
    program: Program,
    cone: Cone,
    padding: fx.Node | None,
    queries: Size,
    keys: Size,
    inverted: bool,
    fill: float,
    kind: Rows,
) -> Meaning | None:
    trials = _lengths(program, cone, padding, queries, keys)
    if trials is None:
        return None
    symbols = expression(queries).free_symbols | expression(keys).free_symbols
    many_rows = max(trials, key=lambda trial: trial.others)
    if tells_rows_apart(cone, many_rows, padding, symbols):
        return None
    possible: dict[Reading, Meaning] = {}
    numbers, finite = Trials(), False
    for first, trial in enumerate(trials):
        rows, columns = trial.of(queries), trial.of(keys)
        if padding is None:
            result = cone.run(trial, {})
            if result is None and trial.uneven:
                continue  # The model takes no such sizes.
            batch = result.shape[0] if isinstance(result, Tensor) and result.dim() == 4 else 1
            seen = _seen(result, batch, rows, columns, inverted, fill)
            if seen is None:
                return None
            finite |= seen.finite
            if first == 0 and (pattern := _band(seen.visible[0])) is not None:
                possible = {NONZERO: Meaning(*pattern)}
            possible = {r: m for r, m in possible.items() if shows(seen, None, m.causal, m.window, kind)}
        else:
            batch = trial.of(sizes(padding)[0])
            if first == 0:
                possible = _without_padding(cone, trial, padding, batch, rows, columns, inverted)
            many = columns <= (_MANY_VALUES_ALONE if trial is trials[-1] else _MANY_VALUES)
            for values, may_be_senseless in _values(cone, padding, batch, columns, many):
                result = cone.run(trial, {padding: values})
                if result is None and trial.uneven and not may_be_senseless:
                    break  # The model takes no such sizes.
                seen = _seen(result, batch, rows, columns, inverted, fill)
                others = set(values.unique().tolist()) - {0, 1} if may_be_senseless else set()
                if seen is None:
                    if may_be_senseless and _is_senseless(result):
                        numbers.senseless |= others
                        continue
                    return None
                numbers.right |= others
                finite |= seen.finite
                possible = {
                    (operator, number): m
                    for (operator, number), m in possible.items()
                    if shows(seen, operator(values, number), m.causal, m.window, kind)
                }
                if not possible:
                    return None
        if not possible:
            return None
    meaning = replace(next(iter(possible.values())), finite=finite)
    if padding is None or padding.meta["val"].dtype == torch.bool:
        return meaning
    return replace(meaning, domain=numbers.domain())


def _without_padding(
    cone: Cone, trial: Sizes, padding: fx.Node, batch: int, rows: int, columns: int, inverted: bool
) -> dict[Reading, Meaning]:
    """Every reading of ``padding`` under which the mask is a band where all keys are real."""
    possible = {}
    for value in (1, 0):
        values = torch.full((batch, columns), value, dtype=padding.meta["val"].dtype)
        seen = _seen(cone.run(trial, {padding: values}), batch, rows, columns, inverted)
        pattern = None if seen is None else _band(seen.visible[0])
        # Where every token sees itself alone, nothing is hidden from a real one, and so nothing tells which are real.
        if pattern is None or pattern[1] == 1:
            continue
        for operator, number in readings(padding):
            if bool(operator(values, number).all()):
                possible[operator, number] = Meaning(*pattern, padding, (operator, number))
    return possible


def _values(
    cone: Cone, padding: fx.Node, batch: int, columns: int, many: bool
) -> Iterator[tuple[Tensor, bool]]:
    """Values to try, and whether the mask may be senseless for them."""
    if not many:
        for values in islice(zeros_and_ones(padding, batch, columns), 4):
            yield values, False
        return
    for values in zeros_and_ones(padding, batch, columns):
        yield values, False
    for values in other_integers(padding, batch, columns, cone.literals):
        yield values, True


def _is_senseless(value: Any) -> bool:
    """Whether the model's own code has no use for such an input: it fails, or lifts logits as far as it hides others.

    ``(1 - mask) * -1e4`` adds 1e4 where ``mask`` is 2: such code is written for zeros and ones.
    """
    if value is None:
        return True
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return bool(((value == 0) | (value.abs() >= -LOW) | value.isnan()).all())


def _seen(
    value: Any, batch: int, rows: int, columns: int, inverted: bool, fill: float = -math.inf
) -> Seen | None:
    """What a mask shows; None where the value is no mask or differs between heads."""
    if value is None or not isinstance(value, Tensor) or not 2 <= value.dim() <= 4:
        return None
    if value.dtype == torch.bool:
        visible = value ^ inverted
        finite = torch.full_like(visible, fill > -math.inf)
    elif value.is_floating_point() and not inverted:
        visible, finite = value == 0, value.isfinite()
        if not bool((visible | (value <= LOW)).all()):
            return None
    else:
        return None
    whole = [
        entries if entries.dim() == 4 else entries[(None,) * (4 - entries.dim())]
        for entries in (visible, finite)
    ]
    shape = whole[0].shape
    if any(size not in (1, full) for size, full in zip(shape[::2], (batch, rows), strict=True)):
        return None
    if shape[3] not in (1, columns):
        return None
    visible, finite = (entries.expand(batch, shape[1], rows, columns) for entries in whole)
    if not bool((visible == visible[:, :1]).all()):
        return None
    hides = bool((finite & ~visible).any())
    visible = visible[:, 0]
    return Seen(visible, finite.any(1).any(-1) & ~visible.any(-1), hides)


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


def _padding_candidates(program: Program, cone: Cone, keys: Size) -> Iterator[fx.Node | None]:
    """None when no input's value is read; else nodes ``[batch, keys]`` of the cone, nearest the inputs first.

    An integer counts only as an input whose example holds nothing but zeros and ones: ids mean something else.
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


def _lengths(
    program: Program, cone: Cone, padding: fx.Node | None, queries: Size, keys: Size
) -> list[Sizes] | None:
    """Long and short trials; None when the code could hold a window longer than any trial.

    The lengths in between tell a window from a part of the length, and many rows show one that is unlike the others.
    Where queries and keys are not as many, there are trials with fewer of either.
    """
    of_queries, of_keys = expression(queries).free_symbols, expression(keys).free_symbols
    symbols = of_queries | of_keys
    scale = longest_scale(program, cone, padding)
    past = 4 * SHORT if scale is None else max(4 * SHORT, 2 * math.ceil(scale) + 3)
    others = {name for symbol, name in program.symbols.items() if symbol not in map(str, symbols)}
    rows = min(past, LONGEST, *_limits(program, others))
    if not symbols:
        return [Sizes(program, SHORT, symbols, rows), Sizes(program, SHORT)]
    if scale is None:
        return None
    names = {program.symbols.get(str(symbol), "") for symbol in symbols}
    longest = min(past, *_limits(program, names))
    if longest > LONGEST:
        return None
    lengths = {min(SHORT, longest), max(1, 2 * longest // 3), max(1, longest - 1), longest}
    long, *shorter = (Sizes(program, n, symbols) for n in sorted(lengths, reverse=True))
    uneven = [
        Sizes(program, n, symbols, halved=fewer)
        for fewer in (of_queries - of_keys, of_keys - of_queries)
        for n in (longest, min(SHORT, longest))
        if fewer
    ]
    return [long, Sizes(program, min(SHORT, longest), symbols, rows), *uneven, *shorter]


def _limits(program: Program, names: Collection[str]) -> list[int]:
    """How large sizes of these names may be; one number more than any trial stands for those that have no limit."""
    highs = [program.ranges.get(name, (1, None))[1] for name in names]
    return [LONGEST + 1, *(high for high in highs if high is not None)]


def _same(size: Any, other: Size) -> bool:
    if isinstance(size, fx.Node):
        size = size.meta["val"]
    return same_size(size, other)
