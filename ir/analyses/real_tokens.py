"""Which entries of each output are tokens that attention does not hide as padding, proven from the graph.

Start at a self-attention: its query, key and value descend from one value whose tokens they hold.  The token axis of
that value is followed to the outputs.  What is computed at a token that every such attention hides is nobody's result.
An output that the axis does not reach has no padding, whatever its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from ..dialect import Role, traits_of
from ..evaluate import evaluate, sources_of
from ..operands import arguments
from ..program import Program
from ..shapes import same_size
from .attention_facts import operand
from .layers import content_flow, is_attention
from .located import Located
from .token_axis import NONE, BatchContext, Dims, NotTokenwise, TokenAxis, apply_rule, region_nodes
from .token_rules import each_result, rank_of

# Which tokens are left, by the choices of one gather after another.
Chosen = tuple[fx.Node, ...]


@dataclass
class _Padding:
    """What hides the tokens of an output.

    Attributes:
        sources: bool ``[batch, tokens]`` each, False where one attention hides a token.
        chosen: indices ``[batch, kept]`` that tokens were gathered by between those attentions and the output.
    """

    sources: tuple[fx.Node, ...]
    chosen: Chosen


def real_tokens(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bool ``[batch, tokens]`` by output name, True for real tokens: dims 0 and 1 of that output.

    An output is left out where it is not proven to hold one entry a token, or where nothing hides tokens.

    Args:
        inputs: all of the Program's inputs, as ``Program.bind`` returns them.
    """
    found = program.analysis(_paddings)
    values = evaluate(program, {n for p in found.values() for n in (*p.sources, *p.chosen)}, inputs)
    real: dict[str, Tensor] = {}
    for name, padding in found.items():
        masks = [values[source].bool() for source in padding.sources]
        mask = torch.stack(list(torch.broadcast_tensors(*masks))).any(0)
        for index in padding.chosen:
            mask = mask.expand(values[index].shape[0], -1).gather(1, values[index])
        real[name] = mask
    return real


def padding_inputs(program: Program) -> dict[str, tuple[str, ...]]:
    """Names of the inputs that say which tokens of an output are real, by output name."""
    found = program.analysis(_paddings)
    return {
        name: tuple(
            str(node.target) for node in program.graph.nodes if node.op == "placeholder" and node in above
        )
        for name, above in ((name, sources_of(padding.sources)) for name, padding in found.items())
    }


def take_real(value: Tensor, real: Tensor | None) -> Tensor:
    """Entries ``[real, ...]`` of ``value [batch, tokens, ...]``; all of it where nothing is padding."""
    if real is None or bool(real.all()):
        return value
    return value[real.expand(value.shape[:2])]


def _paddings(program: Program) -> dict[str, _Padding]:
    flow = content_flow(program)
    results: Any = program.output_node.args[0]
    seen: set[fx.Node] = set()
    found: dict[str, _Padding] = {}
    for attention in [n for n in program.graph.nodes if is_attention(n)]:
        if attention in seen or operand(attention, "padding") is None:
            continue
        origin = _origin(program, flow, attention)
        if origin is None:
            continue
        followed = _Followed(program, *origin)
        seen |= followed.hidden.keys()
        for spec, node in zip(program.outputs, results, strict=True):
            padding = followed.padding(node)
            if padding is not None:
                found[spec.name] = padding
    return found


def _origin(program: Program, flow: nx.DiGraph, attention: fx.Node) -> tuple[fx.Node, int] | None:
    """The value whose tokens query, key and value all hold, and the dim of its tokens; None for other attention."""
    operands: Any = attention.args[:3]
    if not same_size(*(operand.meta["val"].shape[2] for operand in operands[:2])):
        return None
    common = set.intersection(*(nx.ancestors(flow, operand) | {operand} for operand in operands))
    place = {node: i for i, node in enumerate(program.graph.nodes)}
    computed = [n for n in common if n.op in ("call_function", "placeholder")]
    streams = [n for n in computed if isinstance(n.meta["val"], Tensor) and rank_of(n) == 3]
    if not streams:
        return None
    start = max(streams, key=place.__getitem__)
    for dim in (1, 0):
        if all(_reaches(program, start, dim, operand) for operand in operands):
            return start, dim
    return None


def _reaches(program: Program, start: fx.Node, dim: int, operand: fx.Node) -> bool:
    axis = Located(TokenAxis(), start, dim)
    for node in region_nodes(program, start, operand):
        axis.follow(node)
    return axis.dims(operand) == frozenset({2}) and axis.fold(operand) is None


@dataclass
class _Followed:
    """The tokens of one stream on their way to the outputs.

    Attributes:
        chosen: how the tokens of a value were chosen from those of ``start``.
        hidden: the self-attentions of the stream and what hides padding there; None where nothing does.
    """

    program: Program
    start: fx.Node
    dim: int
    chosen: dict[fx.Node, Chosen] = field(default_factory=dict)
    hidden: dict[fx.Node, fx.Node | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = Located(TokenAxis(), self.start, self.dim)
        self.rows = BatchContext(TokenAxis(), self.start, 1 - self.dim)
        self.chosen[self.start] = ()
        for node in region_nodes(self.program, self.start, self.program.output_node):
            self._step(node)

    def _step(self, node: fx.Node) -> None:
        if traits_of(node).role is Role.MOVES and self._moved(node):
            return
        self.tokens.follow(node)
        try:
            self.rows.found[node] = apply_rule(self.rows, node)
        except NotTokenwise:
            self.rows.found[node] = NONE
        ways = {self.chosen[n] for n in node.all_input_nodes if self.tokens.found.get(n) and n in self.chosen}
        if len(ways) == 1:
            self.chosen[node] = ways.pop()
        elif ways:
            self.tokens.found[node] = NONE
        if is_attention(node) and all(self.tokens.dims(operand) for operand in node.args[:2]):
            padding = operand(node, "padding")
            # A mask that was not taken apart may hide padding too: it is no evidence either way.
            if padding is not None or operand(node, "mask") is None:
                self.hidden[node] = padding

    def _same(self, node: fx.Node, source: Any) -> None:
        tokens, rows = self._axes(source)
        self.tokens.found[node], self.rows.found[node] = each_result(node, tokens), each_result(node, rows)
        if source in self.chosen:
            self.chosen[node] = self.chosen[source]

    def _axes(self, source: Any) -> tuple[Dims, Dims]:
        if self.tokens.fold(source) is not None or self.rows.fold(source) is not None:
            return NONE, NONE
        return self.tokens.dims(source), self.rows.dims(source)

    def _moved(self, node: fx.Node) -> bool:
        """Whether the operator tells which tokens it leaves, and of what is known; they are noted then."""
        traits, operands = traits_of(node), arguments(node)
        if traits.onto is not None:
            self._same(node, operands[traits.onto])
            return True
        if traits.index is None:
            return False
        source, index = operands[traits.content[0]], operands[traits.index]
        dim = 1 if traits.dim is None else operands[traits.dim]
        if self._axes(source) != (frozenset({dim}), frozenset({0})) or source not in self.chosen:
            return False
        self._same(node, source)
        self.chosen[node] = (*self.chosen[source], index)
        # The index itself has one entry for each token that it chooses.
        self.tokens.found[index], self.rows.found[index] = frozenset({1}), frozenset({0})
        self.chosen[index] = self.chosen[node]
        return True

    def padding(self, node: fx.Node) -> _Padding | None:
        """What hides the tokens of an output, ``[batch, tokens, ...]``; None where that is not what it holds."""
        if self._axes(node) != (frozenset({1}), frozenset({0})) or node not in self.chosen:
            return None
        chosen = self.chosen[node]
        for length in range(len(chosen), -1, -1):
            sources = [
                padding
                for attention, padding in self.hidden.items()
                if self.chosen.get(attention) == chosen[:length]
            ]
            if sources:
                known = tuple(dict.fromkeys(p for p in sources if p is not None))
                return _Padding(known, chosen[length:]) if None not in sources else None
        return None
