"""What a query may see, as an additive bias that every layer of a model shares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from tersor.ir.analyses.hiding import hides_nothing
from tersor.ir.operands import find_operand
from tersor.ir.shapes import expression, same_size

from .emitter import Emitter


@dataclass(frozen=True)
class Sight:
    """The operands of an attention that decide visibility; equal ones give one and the same mask.

    Dim 2 of ``query`` and ``key`` counts them, and ``square`` says that they are as many; ``weighs`` says that the
    mask is proven to hide nothing.
    """

    query: ir.Value
    key: ir.Value
    mask: ir.Value | None
    padding: ir.Value | None
    query_positions: ir.Value | None
    key_positions: ir.Value | None
    causal: bool
    window: int
    square: bool
    weighs: bool

    @classmethod
    def of(
        cls,
        e: Emitter,
        query: ir.Value,
        key: ir.Value,
        mask: ir.Value | None,
        padding: ir.Value | None,
        query_positions: ir.Value | None,
        key_positions: ir.Value | None,
        causal: bool,
        window: int,
    ) -> Sight:
        """From the operands of an attention, whose mask may lack leading dims."""
        weighs = False
        if mask is not None:
            mask = _with_four_dims(e, mask)
            written = find_operand(e.node, "mask") if e.node is not None else None
            weighs = written is not None and hides_nothing(written)
        square = same_size(e.fake(query).shape[2], e.fake(key).shape[2])
        return cls(query, key, mask, padding, query_positions, key_positions, causal, window, square, weighs)

    @property
    def tokens(self) -> Sight:
        """The same without causality and window: what the operands alone hide."""
        return replace(self, causal=False, window=0)

    @property
    def everything(self) -> bool:
        """Whether every query sees every key, with no bias."""
        return self.mask is None and self.padding is None and not self.causal and self.window <= 0

    @property
    def may_be_blind(self) -> bool:
        """Whether some query may see no key at all."""
        placed = self.query_positions is not None or self.key_positions is not None
        # By index, a causal query sees the first key; a window holds the query's own index, if a key has it.
        ordered = (placed and self.causal) or (self.window > 0 and (placed or not self.square))
        return ordered or self.padding is not None or (self.mask is not None and not self.weighs)


def _with_four_dims(e: Emitter, mask: ir.Value) -> ir.Value:
    missing = 4 - e.fake(mask).dim()
    if not missing:
        return mask

    def compute() -> ir.Value:
        result = e.op("Unsqueeze", mask, e.ints(list(range(missing))))
        e.annotate(result, e.fake(mask)[(None,) * missing])
        return result

    return e.shared_value(("four dims", id(mask)), compute)


def visible(
    e: Emitter,
    queries: int | torch.SymInt,
    keys: int | torch.SymInt,
    padding: ir.Value | None,
    query_positions: ir.Value | None,
    key_positions: ir.Value | None,
    causal: bool,
    window: int,
) -> ir.Value | None:
    """Bool ``[batch or 1, 1, queries or 1, keys]``, or None when all keys are visible."""
    seen: list[ir.Value] = []
    if padding is not None:
        seen.append(e.op("Unsqueeze", e.cast(padding, torch.bool), e.ints([1, 2])))
    if causal or window > 0:
        q = _positions(e, queries, query_positions, axis=2)
        k = _positions(e, keys, key_positions, axis=1)
        distance = e.op("Unsqueeze", e.op("Sub", q, k), e.ints([1]))
        if causal:
            seen.append(e.op("GreaterOrEqual", distance, e.const(0)))
        if window > 0:
            seen.append(e.op("Less", distance if causal else e.op("Abs", distance), e.const(window)))
    if not seen:
        return None
    result = seen[0]
    for other in seen[1:]:
        result = e.op("And", result, other)
    return result


def _positions(e: Emitter, count: int | torch.SymInt, given: ir.Value | None, axis: int) -> ir.Value:
    """Positions as ``[batch or 1, queries, 1]`` (axis 2) or ``[batch or 1, 1, keys]`` (axis 1)."""
    if given is None:
        length = e.sizes.scalar(count)
        given = e.op("Unsqueeze", e.op("Range", e.const(0), length, e.const(1)), e.ints([0]))
    return e.op("Unsqueeze", given, e.ints([axis]))


def bias(e: Emitter, sight: Sight, dtype: torch.dtype) -> ir.Value:
    """Additive bias ``[batch or 1, heads or 1, queries or 1, keys]``.

    A query that sees nothing gets the lowest finite number everywhere, and so a uniform row instead of NaN;
    :func:`sighted` zeroes it.
    """
    return e.shared_value(("bias", _key(e, sight), dtype), lambda: _bias(e, sight, dtype))


def _bias(e: Emitter, sight: Sight, dtype: torch.dtype) -> ir.Value:
    low = e.const(torch.finfo(dtype).min, dtype)
    seen = _seen(e, sight)
    if sight.mask is None or e.fake(sight.mask).dtype == torch.bool:
        assert seen is not None
        return e.op("Where", seen, e.const(0, dtype), low)
    mask = e.cast(sight.mask, dtype)
    some = sighted(e, sight, dtype)
    if some is None:
        return mask if seen is None else e.op("Where", seen, mask, low)
    # Beside -inf the lowest number is what softmax is over, where nothing else is visible.
    hidden = mask if seen is None else e.op("Where", seen, mask, e.const(float("-inf"), dtype))
    return e.op("Where", e.op("Cast", some, to=int(ir.DataType.BOOL)), hidden, low)


def sighted(e: Emitter, sight: Sight, dtype: torch.dtype) -> ir.Value | None:
    """1 for queries that see some key and 0 for the others, ``[batch or 1, heads or 1, queries or 1, 1]``.

    None when every query sees at least itself.
    """
    if not sight.may_be_blind:
        return None
    return e.shared_value(("sighted", _key(e, sight), dtype), lambda: _sighted(e, sight, dtype))


def zero_blind(e: Emitter, sight: Sight, x: ir.Value) -> ir.Value:
    """``x [batch, heads, queries, ...]`` with zeros for the queries that see no key."""
    factor = sighted(e, sight, e.fake(sight.query).dtype)
    return x if factor is None else e.op("Mul", x, factor)


def zero_blind_tokens(e: Emitter, sight: Sight, x: ir.Value) -> ir.Value:
    """The same for ``x [batch, queries, heads * d]``, of a sight whose mask is the same for all heads."""
    factor = sighted(e, sight, e.fake(sight.query).dtype)
    if factor is None:
        return x
    lined = e.shared_value(("lined", id(factor)), lambda: e.op("Squeeze", factor, e.ints([1])))
    return e.op("Mul", x, lined)


def same_for_heads(e: Emitter, sight: Sight) -> bool:
    """Whether all heads of a sight see the same keys."""
    return sight.mask is None or sight.weighs or expression(e.fake(sight.mask).shape[1]) == 1


def _sighted(e: Emitter, sight: Sight, dtype: torch.dtype) -> ir.Value:
    seen = _seen(e, sight)
    if sight.mask is not None and not sight.weighs and e.fake(sight.mask).dtype != torch.bool:
        mask = e.fake(sight.mask).dtype
        finite = e.op("Greater", sight.mask, e.const(float("-inf"), mask))
        seen = finite if seen is None else e.op("And", seen, finite)
    assert seen is not None
    return e.op("ReduceMax", e.op("Cast", seen, to=_onnx(dtype)), e.ints([3]), keepdims=1)


def _seen(e: Emitter, sight: Sight) -> ir.Value | None:
    """The bool part of the visibility: padding, causality, window and a bool mask."""

    def compute() -> ir.Value:
        q, k = e.fake(sight.query).shape[2], e.fake(sight.key).shape[2]
        seen = visible(
            e, q, k, sight.padding, sight.query_positions, sight.key_positions, sight.causal, sight.window
        )
        if sight.mask is None or e.fake(sight.mask).dtype != torch.bool:
            assert seen is not None
            return seen
        return sight.mask if seen is None else e.op("And", seen, sight.mask)

    floating = sight.mask is not None and e.fake(sight.mask).dtype != torch.bool
    if floating and sight.padding is None and not sight.causal and sight.window <= 0:
        return None
    return e.shared_value(("seen", _key(e, sight)), compute)


def _key(e: Emitter, sight: Sight) -> tuple[object, ...]:
    sizes = (expression(e.fake(sight.query).shape[2]), expression(e.fake(sight.key).shape[2]))
    operands = (sight.mask, sight.padding, sight.query_positions, sight.key_positions)
    return (*sizes, *map(id, operands), sight.causal, sight.window)


def _onnx(dtype: torch.dtype) -> int:
    return int(ir.tensor_adapters.from_torch_dtype(dtype))
