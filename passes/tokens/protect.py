"""Which tokens must stay, read off the graph: class tokens, registers, positions that the head reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx

from tersor.ir.analyses.layers import Layers, content_flow
from tersor.ir.analyses.token_axis import NotTokenwise
from tersor.ir.operands import TO_THE_END, argument
from tersor.ir.program import Program
from tersor.ir.shapes import same_size

from .picks import refuse_picks
from .positions import positions_read

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

    Raises:
        NotTokenwise: something below the last block reads tokens at positions that are not known; it names the node.
    """
    flow = content_flow(program)
    start, reasons = stack[0].start, []
    constant = _ConstantEnds(flow)
    prefix, last = constant.of(start, stack.token_dim)
    if prefix or last:
        reasons.append(
            f"the first {prefix} and last {last} tokens of {start.name} are constants of the model"
        )
    for read in positions_read(program, stack):
        if read.ahead > prefix or read.behind > last:
            reasons.append(f"{read.node.name} reads positions by number")
        prefix, last = max(prefix, read.ahead), max(last, read.behind)
    refuse_picks(program, stack)
    if holds_token_ids(program, stack):
        prefix, last = max(prefix, 1), max(last, 1)
        reasons.append("rows of token ids start and end with delimiters")
    return Protection(prefix, last, tuple(reasons))


class _ConstantEnds:
    """How many tokens at each end of a value are not computed from any input.

    Positions added, norms and casts leave a token what it is: a constant or part of the input.
    """

    def __init__(self, flow: nx.DiGraph) -> None:
        self.flow = flow
        self.known: dict[tuple[fx.Node, int], tuple[int, int]] = {}

    def of(self, node: fx.Node, dim: int) -> tuple[int, int]:
        """The constant tokens at the start and the end of ``dim``, which holds the tokens."""
        if (node, dim) not in self.known:
            self.known[node, dim] = self._find(node, dim)
        return self.known[node, dim]

    def _find(self, node: fx.Node, dim: int) -> tuple[int, int]:
        rank = _rank(node)
        if node.op != "call_function" or rank < 2:
            return 0, 0
        operands: Any = node.args
        if node.target is aten.cat.default and _dim(node) % rank == dim:
            parts = list(operands[0])
            self._refuse_between(node, parts, dim)
            return self._run(parts, 0, dim), self._run(parts[::-1], 1, dim)
        if node.target is aten.pad.default:
            return self._padded(node, dim)
        if node.target in (aten.select_scatter.default, aten.slice_scatter.default):
            return self._written(node, dim)
        if node.target is aten.slice.Tensor and _dim(node) % rank == dim:
            return self._slice(node, dim)
        if node.target is aten.transpose.int:
            a, b = operands[1] % rank, operands[2] % rank
            return self.of(operands[0], {a: b, b: a}.get(dim, dim))
        if node.target is aten.permute.default:
            return self.of(operands[0], operands[1][dim] % rank)
        sources = [s for s in node.all_input_nodes if s in self.flow and self._from_input(s)]
        if (
            len(sources) == 1
            and _rank(sources[0]) > dim
            and same_size(_size(sources[0], dim), _size(node, dim))
        ):
            return self.of(sources[0], dim) if _is_tokenwise(node) else (0, 0)
        return 0, 0

    def _run(self, parts: list[fx.Node], end: int, dim: int) -> int:
        """Constant tokens at the one end of joined ``parts``, that end's part first."""
        total = 0
        for part in parts:
            size = _size(part, dim)
            own = size if not self._from_input(part) else self.of(part, dim)[end]
            if not isinstance(own, int):
                return total
            total += own
            if own != size:
                break
        return total

    def _refuse_between(self, node: fx.Node, parts: list[fx.Node], dim: int) -> None:
        """Refuse tokens of the model's own that stand between those of an input."""

        def is_constant(part: fx.Node) -> bool:
            return not self._from_input(part) or self.of(part, dim)[0] == _size(part, dim)

        inside = [i for i, part in enumerate(parts) if not is_constant(part)]
        between = parts[inside[0] : inside[-1]] if inside else []
        if any(map(is_constant, between)):
            raise NotTokenwise(
                node,
                "joins tokens of the model's own between those of its input; only those at the ends of a row can be "
                "protected",
            )

    def _padded(self, node: fx.Node, dim: int) -> tuple[int, int]:
        """Behind padding along ``dim``, whose zeros a class token is added to."""
        source: Any = node.args[0]
        ends: Any = node.args[1]
        place = 2 * (_rank(node) - 1 - dim)
        before, after = ends[place : place + 2] if place + 1 < len(ends) else (0, 0)
        if not all(isinstance(n, int) and n >= 0 for n in (before, after)):
            return 0, 0
        prefix, last = self.of(source, dim)
        return prefix + before, last + after

    def _written(self, node: fx.Node, dim: int) -> tuple[int, int]:
        """Behind ``x[:, 0] = token``, and ``x[:, :n] = tokens``."""
        base, written = node.args[:2]
        prefix, last = self.of(base, dim)  # type: ignore[arg-type]
        start = argument(node, 3) or 0
        if node.target is aten.select_scatter.default:
            stop, step = start + 1, 1
        else:
            stop, step = argument(node, 4, TO_THE_END), argument(node, 5, 1)
        if start != 0 or step != 1 or not isinstance(stop, int):
            return 0, 0
        if stop == TO_THE_END:
            return self.of(written, dim)  # type: ignore[arg-type]
        ahead = int(argument(node, 2, 0)) % _rank(node) == dim and stop > 0
        return (max(prefix, stop), last) if ahead and not self._from_input(written) else (0, 0)  # type: ignore[arg-type]

    def _slice(self, node: fx.Node, dim: int) -> tuple[int, int]:
        source: Any = node.args[0]
        prefix, last = self.of(source, dim)
        start, stop = _bounds(node)
        if not isinstance(start, int) or start < 0 or (len(node.args) > 4 and node.args[4] != 1):
            return 0, 0
        if stop is None:
            return max(0, prefix - start), last
        return (max(0, min(prefix, stop) - start), 0) if isinstance(stop, int) and stop >= 0 else (0, 0)

    def _from_input(self, node: fx.Node) -> bool:
        return any(n.op == "placeholder" for n in nx.ancestors(self.flow, node) | {node})


def _is_tokenwise(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return (
        isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    ) or packet in (
        aten.slice,
        aten.layer_norm,
        aten.rms_norm,
        aten.dropout,
        aten.to,
        aten._to_copy,
        aten.contiguous,
        aten.clone,
    )


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    """A slice's start and stop; None for a stop at the end."""
    start = node.args[2] if len(node.args) > 2 else None
    stop = node.args[3] if len(node.args) > 3 else None
    return (start or 0), (None if stop == TO_THE_END else stop)


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _dim(node: fx.Node) -> Any:
    """The dim of a cat, select or slice."""
    return node.args[1] if len(node.args) > 1 else 0


def _size(node: fx.Node, dim: int) -> Any:
    return node.meta["val"].shape[dim]


def holds_token_ids(program: Program, stack: Layers) -> bool:
    """Whether the tokens are looked up by number in a table rather than computed from a continuous signal."""
    flow, start = content_flow(program), stack[0].start
    looked_up = (_lookup(n) for n in nx.ancestors(flow, start) | {start})
    return any(_is_id_input(n) for index in looked_up if index is not None for n in _numbers_behind(index))


def _lookup(node: fx.Node) -> fx.Node | None:
    """The places at which ``node`` reads a table of weights; None where it does no such thing."""
    operands: Any = node.args
    if node.target is aten.embedding.default:
        table, index = operands[:2]
    elif node.target is aten.index_select.default:
        table, _, index = operands
    elif node.target is aten.index.Tensor and len([i for i in operands[1] if i is not None]) == 1:
        table, index = operands[0], operands[1][0]
    else:
        return None
    return index if isinstance(index, fx.Node) and table.op == "get_attr" else None


def _numbers_behind(index: fx.Node) -> Iterator[fx.Node]:
    """Values of integers that ``index`` is computed from, itself first.

    What compares them or counts them up no longer holds the numbers: places are the running count of a mask.
    """
    found, pending = {index}, [index]
    while pending:
        node = pending.pop()
        yield node
        if node.target is aten.cumsum.default:
            continue
        for source in node.all_input_nodes:
            value = source.meta.get("val")
            integers = isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32)
            if integers and source not in found:
                found.add(source)
                pending.append(source)


def _is_id_input(node: fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["val"].dim() >= 2
