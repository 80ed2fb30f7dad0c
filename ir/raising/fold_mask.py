"""Replace the mask of an attention node by the attributes it means."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from ..builder import Builder
from ..dialect import is_dialect
from ..operands import arguments
from ..program import Program
from ..shapes import Size, same_size
from ._padding_trials import NONZERO, Reading
from ._pattern import Pattern, WhyNot, calls, sizes
from ._score_mask import may_hide
from .mask_meaning import Meaning, split_mask

aten = torch.ops.aten


@dataclass(frozen=True)
class Folded:
    meaning: Meaning
    biases: tuple[fx.Node, ...]


class FoldMask(Pattern[Folded]):
    """``attention(q, k, v, mask)`` where ``mask`` is padding, causality or a window, with or without a bias.

    The mask must span the attention's own queries and keys.  What hides no key for a reason of its kind (chunks,
    image blocks) stays an explicit operand.
    """

    name = "mask"

    def __init__(self, program: Program, padded_rows: bool = False) -> None:
        super().__init__(program)
        self._padded_rows = padded_rows

    def anchor(self, node: fx.Node) -> bool:
        return is_dialect(node, "attention")

    def match(self, node: fx.Node) -> Folded | WhyNot | None:
        values = arguments(node)
        mask = values["mask"]
        if mask is None or values["query_positions"] is not None or values["key_positions"] is not None:
            return None
        queries, keys = sizes(values["query"])[2], sizes(values["key"])[2]
        split = known_part(self.program, mask, queries, keys, self._padded_rows)
        if split is None:
            return None
        meaning, biases = split
        padding = meaning.padding
        if padding is not None and not same_size(sizes(padding)[-1], keys):
            return WhyNot(padding, "the padding does not span the keys")
        return Folded(meaning, biases)

    def apply(self, node: fx.Node, match: Folded) -> WhyNot | None:
        g = self.builder(node)
        values, meaning = arguments(node), match.meaning
        padding, bias = values["padding"], None
        for term in match.biases:
            bias = term if bias is None else g.add(bias, term)
        if meaning.padding is not None:
            own = _as_bool(g, meaning.padding, meaning.reading)
            self._limit(meaning.padding, meaning.domain)
            padding = own if padding is None else g.call(aten.bitwise_and.Tensor, padding, own)
        windows = [w for w in (values["window"], meaning.window) if w > 0]
        attention = g.op(
            "attention",
            values["query"],
            values["key"],
            values["value"],
            bias,
            padding,
            None,
            None,
            values["sinks"],
            scale=values["scale"],
            causal=bool(values["causal"] or meaning.causal),
            window=min(windows, default=0),
            softcap=values["softcap"],
        )
        node.replace_all_uses_with(attention)
        g.program.graph.erase_node(node)
        return None

    def _limit(self, padding: fx.Node, domain: tuple[int | None, int | None]) -> None:
        """Note that the graph stands for the model within ``domain`` alone: the code that shows it goes away."""
        if domain != (None, None):
            name, domains = str(padding.target), self.program.domains
            self.program.domains = domains | {name: _overlap(domain, domains.get(name, (None, None)))}


def known_part(
    program: Program, mask: fx.Node, queries: Size, keys: Size, padded_rows: bool
) -> tuple[Meaning, tuple[fx.Node, ...]] | None:
    """What :func:`split_mask` returns, of all terms, where the parts may be told to attention apart."""
    split = split_mask(program, mask, queries, keys, padded_rows)
    if split is None:
        return None
    meaning, terms = split
    left: list[fx.Node] = []
    for term in terms:
        more = split_mask(program, term, queries, keys, padded_rows) if may_hide(program, term) else None
        both = None if more is None else _together(meaning, more[0], padded_rows)
        if more is None or both is None:
            left.append(term)
        else:
            meaning = both
            left += more[1]
    return (
        None if any(_meets(program, meaning, term, padded_rows) for term in left) else (meaning, tuple(left))
    )


def _together(one: Meaning, other: Meaning, padded_rows: bool) -> Meaning | None:
    """What both hide.  A token that sees itself in either sees itself, and one that does not is padding."""
    finite = one.finite or other.finite
    if (one.padding is not None and other.padding is not None) or (padded_rows and finite):
        return None
    windows = [meaning.window for meaning in (one, other) if meaning.window > 0]
    return replace(
        one if one.padding is not None else other,
        causal=one.causal or other.causal,
        window=min(windows, default=0),
        finite=finite,
    )


def _meets(program: Program, meaning: Meaning, term: fx.Node, padded_rows: bool) -> bool:
    """Whether ``term`` may hide what is left visible of a query, so that softmax is over what hides the rest.

    Not where only tokens that hide themselves from all can come to that, and are padding, which does not count.
    """
    if not meaning.finite or not may_hide(program, term):
        return False
    one_row = len(sizes(term)) < 2 or same_size(sizes(term)[-2], 1)
    return padded_rows or not one_row


def _overlap(
    left: tuple[int | None, int | None], right: tuple[int | None, int | None]
) -> tuple[int | None, int | None]:
    lows, highs = ([n for n in pair if n is not None] for pair in zip(left, right, strict=True))
    return max(lows, default=None), min(highs, default=None)


def _as_bool(g: Builder, padding: fx.Node, reading: Reading) -> fx.Node:
    """The padding as attention takes it, true for real keys: one node for all the layers that read it."""
    if reading == NONZERO and padding.meta["val"].dtype == torch.bool:
        return padding
    target, operands = reading[0], (padding, reading[1])
    for user in padding.users:
        if calls(user, target) and user.args == operands and user < g.before:
            return user
    with g.at(padding.next):
        made = g.call(target, *operands)
        made.meta["layer"] = padding.meta.get("layer", "")
        return made
