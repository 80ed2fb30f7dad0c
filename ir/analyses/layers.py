"""The residual stream and its repeated blocks, found from the data flow alone.

Values through which every path from the input to the outputs passes are the stream's bottlenecks (the
post-dominators of the input).  An attention op lies between two of them: the stream before it and the stream
right after its residual addition.  Module names only label the result.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from ..dialect import Role, traits_of
from ..operands import arguments
from ..program import Program
from ..same_elements import SHAPE_ONLY
from ..shapes import Size
from .stream_layout import token_dim

aten = torch.ops.aten
# These take entries of their first operand; the others say which.
_TAKES = {aten.index, aten.index_select, aten.gather, aten.take_along_dim}


@dataclass(frozen=True)
class Layer:
    """One block of the residual stream.

    Attributes:
        index: position in the stack, from 0.
        attention: its attention nodes (more than one only where they run side by side).
        start: the stream on entry.  after_attention: the stream once attention has been added.
        end: the stream on exit; the next layer's ``start``.
        label: the module the attention came from.
    """

    index: int
    attention: tuple[fx.Node, ...]
    start: fx.Node
    after_attention: fx.Node
    end: fx.Node
    label: str


@dataclass(frozen=True)
class Layers:
    """The stack of blocks, and why attention nodes outside of it are outside.

    Attributes:
        blocks: in execution order.
        stream: every bottleneck of the stream in order, the embedding first.
        outside: attention nodes of no block, with the reason.
        token_dim: the dim of the stream that holds tokens, 1 of ``[batch, tokens, width]`` or 0 of
            ``[tokens, batch, width]``.
    """

    blocks: tuple[Layer, ...]
    stream: tuple[fx.Node, ...]
    outside: tuple[tuple[fx.Node, str], ...]
    token_dim: int = 1

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Layer:
        return self.blocks[index]

    @property
    def end(self) -> fx.Node:
        """The stream as it leaves the last block."""
        return self.blocks[-1].end

    @property
    def tokens(self) -> Size:
        """How many tokens the stream holds as it leaves the last block."""
        return self.end.meta["val"].shape[self.token_dim]  # type: ignore[no-any-return]


def layers(program: Program) -> Layers:
    """The blocks of ``program``; read it through ``program.analysis(layers)``."""
    flow = content_flow(program)
    attentions = [n for n in program.graph.nodes if is_attention(n)]
    stream = _stream(program, flow)
    if not stream:
        reason = "no single value carries the stream from the input to the outputs"
        return Layers((), (), tuple((a, reason) for a in attentions))
    place = {node: i for i, node in enumerate(stream)}
    after = _first_below(flow, stream, place)
    groups: dict[int, list[fx.Node]] = {}
    outside: list[tuple[fx.Node, str]] = []
    for attention in attentions:
        position = after.get(attention, 0)
        why = _why_outside(flow, attention, stream[position - 1] if position else None)
        if why:
            outside.append((attention, why))
        else:
            groups.setdefault(position, []).append(attention)
    for position, found in list(groups.items()):
        why = _why_one_after_another(flow, found)
        if why:
            outside += [(attention, why) for attention in found]
            del groups[position]
    positions = sorted(groups)
    blocks = []
    for index, position in enumerate(positions):
        following = positions[index + 1] if index + 1 < len(positions) else None
        end = _last_end(stream, positions) if following is None else following - 1
        found = tuple(groups[position])
        blocks.append(
            Layer(index, found, stream[position - 1], stream[position], stream[end], _label(found[0]))
        )
    query: Any = blocks[0].attention[0].args[0] if blocks else None
    dim = token_dim(program, blocks[0].start, query) if blocks else 1
    return Layers(tuple(blocks), tuple(stream), tuple(outside), dim)


def is_attention(node: fx.Node) -> bool:
    """Whether the node is a dialect op that computes attention outputs."""
    return traits_of(node).role is Role.ATTENDS


def restores_or_reduces(node: fx.Node) -> bool:
    """Whether a value of the stream holds other tokens than the value before it: a token pass was here.

    Where tokens lie before the batch, a pass also turns the stream around its operators.
    """
    if node.target is torch.ops.aten.transpose.int:
        source: Any = node.args[0]
        around = (_content_source(source), *node.users)
    else:
        around = (_content_source(node),)
    return any(traits_of(n).role is Role.MOVES for n in around)


def _content_source(node: fx.Node) -> fx.Node:
    return node.args[0] if node.target is operator.getitem else node  # type: ignore[return-value]


def content_flow(program: Program) -> nx.DiGraph:
    """Tensor data flow without the edges that only steer: sizes, masks, padding, positions, choices of tokens.

    Where entries are taken from what an input has a part in, the index steers; where they are looked up in a table of
    the model's own, the index is what the result is made of.
    """
    flow = nx.DiGraph()
    fed: set[fx.Node] = set()
    attended: set[fx.Node] = set()
    for node in program.graph.nodes:
        if is_attention(node) or not attended.isdisjoint(node.all_input_nodes):
            attended.add(node)
        if node.op == "output" or _is_tensor(node):
            flow.add_node(node)
            sources: list[fx.Node] = []
            fx.map_arg(_content(node, fed, attended), sources.append)
            flow.add_edges_from((source, node) for source in sources if _is_tensor(source))
            if node.op == "placeholder" or not fed.isdisjoint(sources):
                fed.add(node)
    return flow


def _content(node: fx.Node, fed: set[fx.Node], attended: set[fx.Node]) -> Any:
    """The operands whose content, not only whose shape or order, is in the node's result.

    Args:
        fed: the nodes before it that an input's content is in.
        attended: those that an attention has a part in.
    """
    content = traits_of(node).content
    if content:
        operands = arguments(node)
        return [operands[name] for name in content]
    packet = getattr(node.target, "overloadpacket", None)
    if packet in SHAPE_ONLY:
        return node.args[1:]
    if packet in _TAKES and node.args[0] in fed:
        return node.args[0]
    if packet is aten.masked_fill and node.args[1] not in attended:
        return (node.args[0], node.args[2])
    return (node.args, node.kwargs)


def _is_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor | tuple | list)


def _is_continuous(node: fx.Node) -> bool:
    value: Any = node.meta["val"]
    return not isinstance(value, torch.Tensor) or value.is_floating_point()


def _why_outside(flow: nx.DiGraph, attention: fx.Node, start: fx.Node | None) -> str | None:
    """Why an attention node is not self-attention of the block that begins with ``start``."""
    if start is None:
        return "its output does not reach the residual stream"
    for what, operand in zip(("query does", "keys do"), attention.args[:2], strict=True):
        if not nx.has_path(flow, start, operand):
            return f"its {what} not come from the residual stream"
    return None


def _why_one_after_another(flow: nx.DiGraph, found: list[fx.Node]) -> str | None:
    """Why attention nodes between two bottlenecks are no block's: they do not run side by side."""
    for attention in found:
        for earlier in found:
            if earlier is not attention and nx.has_path(flow, earlier, attention):
                return f"values go past it and past {earlier.name} before it, so that no single one is the stream"
    return None


def _stream(program: Program, flow: nx.DiGraph) -> list[fx.Node]:
    """Of the chains of post-dominators below inputs the one with most values that attention has a part in.

    The input first, the output node left out.  Below positions, of which every block has angles, nothing before the
    last block is one value.
    """
    output = program.output_node
    backwards = flow.reverse(copy=True)
    # A result that no attention has a part in leaves the model before the stack and is no part of the stream.
    attended = {n for a in program.graph.nodes if is_attention(a) for n in nx.descendants(flow, a)}
    stepping = program.stepping
    states, driven = (stepping.results, stepping.driven) if stepping is not None else ((), ())
    returned: Any = output.args[0]
    kept = {r for r, spec in zip(returned, program.outputs, strict=True) if spec.name in states}
    results = [r for r in flow.predecessors(output) if r in attended and r not in kept]
    # Nor is a result of numbers, such as which tokens were kept, beside one that holds content.
    results = [r for r in results if _is_continuous(r)] or results
    backwards.remove_edges_from([(output, r) for r in flow.predecessors(output) if r not in results])
    post = nx.immediate_dominators(backwards, output)
    chains: list[list[fx.Node]] = [[]]
    for node in program.graph.nodes:
        # What drives steps says where tokens are; the stream is what they are.
        if node.op != "placeholder" or node not in post or node.target in driven:
            continue
        chain, current = [node], node
        while post.get(current) not in (None, current):
            current = post[current]
            chain.append(current)
        chains.append(chain)
    best = max(chains, key=lambda chain: (len(attended.intersection(chain)), len(chain)))
    return [node for node in best if node is not output]


def _first_below(flow: nx.DiGraph, stream: list[fx.Node], place: dict[fx.Node, int]) -> dict[fx.Node, int]:
    """For every node, the position of the first bottleneck it flows into."""
    first: dict[fx.Node, int] = {}
    for node in reversed(list(nx.topological_sort(flow))):
        below = [
            place[s] if s in place else first[s] for s in flow.successors(node) if s in place or s in first
        ]
        if below:
            first[node] = min(below)
    return first


def _last_end(stream: list[fx.Node], positions: list[int]) -> int:
    """Where the last block ends: as far past its attention as the blocks before it, and on the same op."""
    last = positions[-1]
    ahead = [i for i in range(last, len(stream)) if not restores_or_reduces(stream[i])]
    if len(positions) > 1:
        block = range(positions[-2], positions[-1])
        span = sum(not restores_or_reduces(stream[i]) for i in block)
        target = next(stream[i].target for i in reversed(block) if not restores_or_reduces(stream[i]))
        # A block's start belongs to the block before: of `span` bottlenecks, the first is attention's own.
        ends = ahead[:span]
        return next((i for i in reversed(ends) if stream[i].target == target), last)
    additions = [i for i in ahead if stream[i].target == stream[last].target]
    return additions[1] if len(additions) > 1 else additions[0]


def _label(attention: fx.Node) -> str:
    return str(attention.meta.get("layer", ""))
