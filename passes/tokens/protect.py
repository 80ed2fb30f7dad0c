"""Which tokens must stay, read off the graph: class tokens, registers, positions that the head reads."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import torch
from torch import fx

from tersor.ir.analyses.layers import Layers, content_flow
from tersor.ir.program import Program
from tersor.ir.shapes import expression

aten = torch.ops.aten


@dataclass(frozen=True)
class Protection:
    """Real tokens at each end of a row that always stay, and why."""

    prefix: int
    last: int
    reasons: tuple[str, ...]


def find_protected(program: Program, stack: Layers) -> Protection:
    """Three facts protect tokens, each found without a name:

    tokens joined to the sequence that no input has a part in (class token, registers, prompts); positions that
    are read by number after the last block; the two ends of a row of token ids, which delimiters occupy.
    """
    flow = content_flow(program)
    prefix, last, reasons = _constant_tokens(flow, stack)
    for node, position in _positions_read(flow, stack[len(stack) - 1].end):
        if position >= 0 and position + 1 > prefix:
            prefix = position + 1
            reasons.append(f"{node.name} reads position {position}")
        elif position < 0 and -position > last:
            last = -position
            reasons.append(f"{node.name} reads position {position}")
    if _token_ids(program, flow, stack[0].start):
        prefix, last = max(prefix, 1), max(last, 1)
        reasons.append("rows of token ids start and end with delimiters")
    return Protection(prefix, last, tuple(reasons))


def _constant_tokens(flow: nx.DiGraph, stack: Layers) -> tuple[int, int, list[str]]:
    prefix = last = 0
    reasons = []
    first = stack.stream.index(stack[0].start)
    for node in stack.stream[: first + 1]:
        if node.target is not aten.cat.default or (node.args[1] if len(node.args) > 1 else 0) not in (1, -2):
            continue
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
        constant = [_is_constant(flow, part) for part in parts]
        leading = next((i for i, c in enumerate(constant) if not c), len(parts))
        trailing = next((i for i, c in enumerate(reversed(constant)) if not c), len(parts))
        sizes = [part.meta["val"].shape[1] for part in parts]
        prefix += sum(int(s) for s in sizes[:leading])
        last += sum(int(s) for s in sizes[len(sizes) - trailing :]) if trailing < len(parts) else 0
        if leading or trailing:
            reasons.append(f"{node.name} joins tokens that no input has a part in")
    return prefix, last, reasons


def _is_constant(flow: nx.DiGraph, node: fx.Node) -> bool:
    return not any(n.op == "placeholder" for n in nx.ancestors(flow, node) | {node})


def _positions_read(flow: nx.DiGraph, end: fx.Node) -> list[tuple[fx.Node, int]]:
    """Fixed positions that anything below ``end`` reads along its token dim."""
    tokens = end.meta["val"].shape[1]
    found = []
    for node in nx.descendants(flow, end):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
            continue
        shape = source.meta["val"].shape
        if len(shape) != 3 or expression(shape[1]) != expression(tokens):
            continue
        if node.target is aten.select.int and node.args[1] in (1, -2):
            found.append((node, int(node.args[2])))
        elif node.target is aten.slice.Tensor and node.args[1] in (1, -2):
            start = node.args[2] if len(node.args) > 2 else 0
            if isinstance(start, int) and start != 0:
                found.append((node, start - 1 if start > 0 else start))
    return found


def _token_ids(program: Program, flow: nx.DiGraph, start: fx.Node) -> bool:
    sources = nx.ancestors(flow, start)
    return any(
        n.op == "placeholder" and not n.meta["val"].dtype.is_floating_point and n.meta["val"].dim() == 2
        for n in sources
    )
