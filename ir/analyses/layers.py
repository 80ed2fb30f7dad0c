"""The residual stream and its repeated blocks, found from the data flow alone.

Values through which every path from the input to the outputs passes are the stream's bottlenecks (the
post-dominators of the input).  An attention op lies between two of them: the stream before it and the stream
right after its residual addition.  Module names only label the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from ..dialect import is_dialect
from ..program import Program

# Operands of attention that steer it but carry no content of the residual stream.
_CONTENT_OPERANDS = 3


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
    """

    blocks: tuple[Layer, ...]
    stream: tuple[fx.Node, ...]
    outside: tuple[tuple[fx.Node, str], ...]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Layer:
        return self.blocks[index]


def layers(program: Program) -> Layers:
    """The blocks of ``program``; read it through ``program.analysis(layers)``."""
    flow = content_flow(program)
    attentions = [n for n in program.graph.nodes if is_attention(n)]
    stream = _stream(program, flow, attentions)
    if not stream:
        reason = "no single value carries the stream from the input to the outputs"
        return Layers((), (), tuple((a, reason) for a in attentions))
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    place = {node: i for i, node in enumerate(stream)}
    after = _first_below(flow, stream, place)
    groups: dict[int, list[fx.Node]] = {}
    outside: list[tuple[fx.Node, str]] = []
    for attention in attentions:
        position = after.get(attention)
        if position is None or position == 0:
            outside.append((attention, "its output does not reach the residual stream"))
        elif not all(nx.has_path(flow, stream[position - 1], q) for q in attention.args[:1]):
            outside.append((attention, "its query does not come from the residual stream"))
        else:
            groups.setdefault(position, []).append(attention)
    positions = sorted(groups)
    blocks = []
    for index, position in enumerate(positions):
        end = positions[index + 1] - 1 if index + 1 < len(positions) else _last_end(stream, positions)
        found = tuple(sorted(groups[position], key=order.__getitem__))
        blocks.append(
            Layer(index, found, stream[position - 1], stream[position], stream[end], _label(found[0]))
        )
    return Layers(tuple(blocks), tuple(stream), tuple(outside))


def is_attention(node: fx.Node) -> bool:
    """Whether the node is a dialect op that computes attention outputs."""
    return is_dialect(node, "attention", "attention_importance", "sparse_attention")


def content_flow(program: Program) -> nx.DiGraph:
    """Tensor data flow without the edges that only steer: sizes, masks, padding, positions."""
    flow = nx.DiGraph()
    for node in program.graph.nodes:
        if node.op == "output" or _is_tensor(node):
            flow.add_node(node)
            operands = node.args[:_CONTENT_OPERANDS] if is_attention(node) else (node.args, node.kwargs)
            fx.map_arg(operands, lambda n, user=node: flow.add_edge(n, user) if _is_tensor(n) else None)
    return flow


def _is_tensor(node: fx.Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, torch.Tensor | tuple | list)


def _stream(program: Program, flow: nx.DiGraph, attentions: list[fx.Node]) -> list[fx.Node]:
    """The bottlenecks below the input that feeds the attention: its chain of post-dominators."""
    output = program.output_node
    post = nx.immediate_dominators(flow.reverse(copy=False), output)
    best: list[fx.Node] = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node not in post:
            continue
        chain, current = [node], node
        while post.get(current) not in (None, current):
            current = post[current]
            chain.append(current)
        if len(chain) > len(best):
            best = chain
    # The chain starts at the embedding: bottlenecks above the last one that no attention lies below are kept as
    # they are, and the output node itself is no value.
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
    if len(positions) > 1:
        span = positions[-1] - positions[-2] - 1
        # A block's start belongs to the block before: of `span + 1` bottlenecks, the last precedes attention.
        end = min(last + span, len(stream) - 1)
        reference = stream[positions[-1] - 1]
        while end > last and stream[end].target != reference.target:
            end -= 1
        return end
    additions = [i for i in range(last, len(stream)) if stream[i].target == stream[last].target]
    return additions[1] if len(additions) > 1 else additions[0]


def _label(attention: fx.Node) -> str:
    return str(attention.meta.get("layer", ""))
