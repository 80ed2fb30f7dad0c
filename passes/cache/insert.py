"""``kv-cache``: a decoder that is fed whole rows becomes one that is fed a few tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from tersor.ir.analyses.layers import Layers, layers
from tersor.ir.analyses.token_axis import NotTokenwise, TokenAxis, follow, token_axis_to_outputs
from tersor.ir.boundary import add_input, describe_outputs, new_dim
from tersor.ir.builder import Builder
from tersor.ir.errors import RefusedError
from tersor.ir.inference import infer_shapes
from tersor.ir.operands import arguments
from tersor.ir.program import Program
from tersor.ir.stepping import Slots, Stepping

from ..contract import Pass, Promise, Refusal, Site
from ..fewer_tokens import reduce_along
from .layout import CacheLayout, Group
from .legality import Decoder, read_decoder
from .positions import counts_padding, origins_of, placed
from .whole_rows import refuse_whole_rows
from .windowed import Windowed


@dataclass(frozen=True)
class KvCache(Pass):
    """Keep keys and values of earlier tokens, so that each new token is computed once."""

    name: ClassVar[str] = "kv-cache"
    family: ClassVar[str] = "cache"
    promise: ClassVar[Promise] = Promise.EXACT
    # One run over whole rows, which is what is timed, is no faster for it: a thousand runs of one token are.
    must_pay: ClassVar[bool] = False

    layout: CacheLayout = field(default_factory=Windowed, metadata={"help": "which tokens each layer keeps"})

    def legality(self, program: Program) -> list[Site] | Refusal:
        decoder = read_decoder(program)
        if isinstance(decoder, Refusal):
            return decoder
        try:
            self._inserted(program.edit())
        except NotTokenwise as refusal:
            return Refusal(refusal.reason, refusal.node.name)
        facts = {node: {"window": int(arguments(node)["window"])} for node in decoder.attentions}
        return [Site(node.name, str(node.meta.get("layer", "")), facts[node]) for node in decoder.attentions]

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        return self._inserted(program.edit()).finished()

    def _inserted(self, work: Program) -> Program:
        decoder = read_decoder(work)
        if isinstance(decoder, Refusal):
            raise RefusedError(str(decoder))
        stack = work.analysis(layers)
        tokens, _ = follow(work, decoder.start, None, (0, 0))
        ids = work.find(decoder.ids)
        batch, count = ids.meta["val"].shape
        refuse_whole_rows(work, decoder, tokens, count)
        positions = add_input(work, "positions", (batch, count), torch.int64)
        wanted = add_input(work, "wanted", (batch, new_dim(work, "wanted")), torch.int64)
        by_index = _place(work, decoder, tokens.axis, positions)
        # What was placed lines up with the tokens behind the last block too.
        _leave_out(work, stack, token_axis_to_outputs(work, stack.end, 0, 0), wanted)
        slots = _give_slots(work, decoder, self.layout, batch)
        work.stepping = Stepping(
            decoder.ids_name, decoder.padding, str(positions.target), str(wanted.target), by_index, slots
        )
        # A step may hold nothing but padding.
        work.fillers = {}
        infer_shapes(work)
        describe_outputs(work)
        return work


def _place(work: Program, decoder: Decoder, axis: TokenAxis, positions: fx.Node) -> bool:
    """Let everything that was computed from counting tokens be computed from ``positions``.

    Returns:
        whether some of it was computed from the index in the row, padding included.
    """
    by_index = False
    done: dict[Any, fx.Node] = {}
    count = positions.meta["val"].shape[1]
    for use in axis.sides:
        if use.user in decoder.attentions:
            continue  # Padding, which the new operator has no need of.
        key = (use.value, use.dims, use.rank)
        if key not in done:
            origins = origins_of(work, use.value, count, decoder.padding)
            by_index |= any(not counts_padding(origin) for origin in origins)
            g = Builder(work, use.value.next, str(use.value.meta.get("layer", "")))
            done[key] = placed(g, use, origins, positions, count)
        use.user.replace_input_with(use.value, done[key])
    return by_index


def _leave_out(work: Program, stack: Layers, tail: TokenAxis, wanted: fx.Node) -> None:
    """Compute past the last block only what is wanted of it."""
    end = stack.end
    readers = list(end.users)
    g = Builder(work, end.next, str(end.meta.get("layer", "")))
    chosen = g.op("gather_tokens", end, wanted, 1)
    for reader in readers:
        reader.replace_input_with(end, chosen)
    reduce_along(g, tail, end, wanted)


def _give_slots(work: Program, decoder: Decoder, layout: CacheLayout, batch: Any) -> tuple[Slots, ...]:
    """Put ``cached_attention`` in the place of every attention, with the states that it needs."""
    groups: dict[int, Group] = {}
    for number, node in enumerate(decoder.attentions):
        values = arguments(node)
        key = layout.group(int(values["window"]))
        if key not in groups:
            groups[key] = layout.begin(work, batch, key)
        g = Builder(work, node, str(node.meta.get("layer", "")))
        node.replace_all_uses_with(groups[key].attend(g, number, values))
        work.graph.erase_node(node)
    return tuple(group.slots() for group in groups.values())
