"""Attention whose keys and values are copied to every query head, as ``repeat_kv`` and ``repeat_interleave`` do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ..dialect import is_dialect
from ..operands import arguments
from ..shapes import same_size
from ._pattern import Pattern, WhyNot, calls, sizes, skip_noops

aten = torch.ops.aten


@dataclass(frozen=True)
class Grouped:
    key: fx.Node
    value: fx.Node


class GroupedHeads(Pattern[Grouped]):
    """``attention(q, repeat(k), repeat(v))`` becomes ``attention(q, k, v)`` with fewer key heads.

    ``repeat(x)`` is ``x[:, :, None].expand(b, kv_heads, groups, n, d).reshape(b, kv_heads * groups, n, d)`` or
    ``x.repeat_interleave(groups, dim=1)``; the groups of keys and of values must be equal.
    """

    name = "grouped heads"

    def anchor(self, node: fx.Node) -> bool:
        return is_dialect(node, "attention")

    def match(self, node: fx.Node) -> Grouped | WhyNot | None:
        values = arguments(node)
        key, value = repeated(values["key"]), repeated(values["value"])
        if key is None or value is None or not same_size(sizes(key)[1], sizes(value)[1]):
            return None
        return Grouped(key, value)

    def apply(self, node: fx.Node, match: Grouped) -> WhyNot | None:
        query = node.args[0]
        node.args = (query, match.key, match.value, *node.args[3:])
        return None


def repeated(node: fx.Node) -> fx.Node | None:
    """The ``[batch, kv_heads, n, d]`` value whose heads ``node`` repeats in place, or None."""
    node = skip_noops(node)
    if calls(node, aten.repeat_interleave.self_int):
        values = arguments(node)
        return values["self"] if values["dim"] == 1 else None
    if not calls(node, aten.reshape.default):
        return None
    wide = node.args[0]
    if calls(wide, aten.clone.default):
        wide = wide.args[0]  # type: ignore[union-attr]
    if not calls(wide, aten.expand.default):
        return None
    narrow = skip_noops(wide.args[0])  # type: ignore[union-attr,arg-type]
    if not calls(narrow, aten.unsqueeze.default) or narrow.args[1] not in (2, -3):
        return None
    source = skip_noops(narrow.args[0])  # type: ignore[arg-type]
    before, after = sizes(source), sizes(node)
    if len(before) != 4 or len(after) != 4 or not isinstance(before[1], int):
        return None
    groups = sizes(wide)[2]  # type: ignore[arg-type]
    kept = all(same_size(before[d], after[d]) for d in (0, 2, 3))
    return source if kept and same_size(before[1] * groups, after[1]) else None
