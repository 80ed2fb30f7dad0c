"""What a model computes from the places of tokens, computed from positions that are given instead.

A model without a cache counts its tokens: ``arange(tokens)``, the first rows of a table, or a running sum of the
padding mask.  Those are the origins of rotary tables and position embeddings.  Between an origin and where the stream
meets it, every operator must treat each token by itself; then the same operators, fed with other positions, give what
they gave for those.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from tersor.ir.analyses.located import Located
from tersor.ir.analyses.token_axis import Dims, NotTokenwise, SideUse, TokenAxis
from tersor.ir.builder import Builder
from tersor.ir.evaluate import evaluate, sources_of
from tersor.ir.operands import argument
from tersor.ir.program import Program
from tersor.ir.shapes import Size, expression, same_size

aten = torch.ops.aten
# What they take sizes for is the shape of their result.
_SHAPED = (aten.reshape, aten.view, aten._unsafe_view, aten.expand, aten.unflatten)


class _Tokenwise(Located):
    """Follows positions from their origin; an operator that does more than treat each by itself is refused."""

    def lost(self, node: fx.Node) -> Dims:
        raise NotTokenwise(
            node, "computes from the positions of several tokens at once, which a cache cannot repeat"
        )


def origins_of(program: Program, value: fx.Node, tokens: Size, padding: str | None) -> list[fx.Node]:
    """The nodes that count tokens among those that ``value`` is computed from.

    Raises:
        NotTokenwise: it is computed from something else that differs from token to token.
    """
    cone = sources_of([value])
    counted = [
        node for node in program.graph.nodes if node in cone and _counts(program, node, tokens, padding)
    ]
    behind: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node not in cone or node in counted:
            continue
        if node.op == "placeholder" and node.target != padding and not _only_sizes(node, cone):
            raise NotTokenwise(
                value,
                f"lines up with the tokens and is computed from the input {node.target!r}: a cache counts tokens "
                f"by itself; where the model does too, capture it without {node.target!r}",
            )
        if any(source in counted or source in behind for source in node.all_input_nodes):
            behind.add(node)
    if not counted:
        raise NotTokenwise(
            value, "lines up with the tokens and counts them in no way that a cache could go on with"
        )
    return counted


def _only_sizes(placeholder: fx.Node, cone: set[fx.Node]) -> bool:
    return all(user.target is aten.sym_size.int for user in placeholder.users if user in cone)


def _counts(program: Program, node: fx.Node, tokens: Size, padding: str | None) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    if packet is aten.arange:
        value = node.meta["val"]
        start = 0 if node.target is aten.arange.default else node.args[0]
        step = node.args[2] if node.target is aten.arange.start_step and len(node.args) > 2 else 1
        return (
            start == 0 and step == 1 and same_size(value.shape[0], tokens) and not value.is_floating_point()
        )
    if packet is aten.slice:
        return _takes_first_rows(node, tokens)
    return packet is aten.cumsum and padding is not None and _sums_padding(program, node, padding)


def counts_padding(origin: fx.Node) -> bool:
    """Whether an origin counts the real tokens of each row, and not all alike."""
    return getattr(origin.target, "overloadpacket", None) is aten.cumsum


def _takes_first_rows(node: fx.Node, tokens: Size) -> bool:
    """Whether a slice holds one row of a table for every token, from the first on."""
    source: Any = node.args[0]
    dim = _counted_dim(node)
    begins = (argument(node, 2) or 0) == 0 and argument(node, 4, 1) == 1
    rows = source.meta["val"].shape[dim]
    return (
        begins
        and same_size(node.meta["val"].shape[dim], tokens)
        and isinstance(rows, int)
        and not any(n.op == "placeholder" for n in sources_of([source]))
    )


def _counted_dim(origin: fx.Node) -> int:
    """The dim of an origin that counts tokens."""
    rank = int(origin.meta["val"].dim())
    is_slice = origin.target is aten.slice.Tensor
    return int(argument(origin, 1, 0)) % rank if is_slice else rank - 1


def _sums_padding(program: Program, node: fx.Node, padding: str) -> bool:
    """Whether a running sum along dim 1 is that of the padding mask: tried on masks, since it may be cast before."""
    source: Any = node.args[0]
    if source.meta["val"].dim() != 2 or int(argument(node, 1)) % 2 != 1:
        return False
    if {n.target for n in sources_of([source]) if n.op == "placeholder"} != {padding}:
        return False
    masks = (torch.tensor([[1, 1, 1, 1, 1]]), torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]))
    return all(
        torch.equal(evaluate(program, [source], {padding: mask})[source].long(), mask) for mask in masks
    )


def placed(g: Builder, use: SideUse, origins: Iterable[fx.Node], positions: fx.Node, tokens: Size) -> fx.Node:
    """``use.value`` for ``positions [batch, tokens]``, of ``use.rank`` dims, the batch first.

    Raises:
        NotTokenwise: an operator between origin and value mixes tokens, or has no form for rows of their own.
    """
    origins = list(origins)
    rows = [origin for origin in origins if counts_padding(origin)]
    if rows and len(rows) < len(origins):
        raise NotTokenwise(use.value, "counts tokens in two ways at once")
    _check_tokenwise(use, origins)
    if rows:
        # A running sum of ones begins with one.
        counted = g.call(aten.add.Tensor, positions, 1)
        return _copied(g, use.value, {origin: _as(g, counted, origin) for origin in origins}, tokens, counted)
    flat = g.call(aten.reshape.default, positions, [-1])
    value = _copied(g, use.value, {origin: _as(g, flat, origin) for origin in origins}, tokens, flat)
    (dim,) = use.dims
    shape = use.value.meta["val"].shape
    if any(expression(size) != 1 for size in shape[:dim]):
        raise NotTokenwise(
            use.value, "holds something else before its tokens, so that rows cannot differ in them"
        )
    ahead = dim + use.rank - len(shape) - 1
    sizes = [g.size(positions, 0), *[1] * ahead, g.size(positions, 1), *map(int, shape[dim + 1 :])]
    return g.call(aten.reshape.default, value, sizes)


def _check_tokenwise(use: SideUse, origins: list[fx.Node]) -> None:
    context = _Tokenwise(TokenAxis(), origins[0], _counted_dim(origins[0]))
    for origin in origins:
        context.found[origin] = frozenset({_counted_dim(origin)})
    needed = sources_of([use.value])
    for node in origins[0].graph.nodes:
        if node in needed and node not in origins and any(n in context.found for n in node.all_input_nodes):
            context.follow(node)
    if context.dims(use.value) != frozenset(use.dims):
        raise NotTokenwise(use.value, "has its tokens elsewhere than the positions that it is computed from")


def _as(g: Builder, counted: fx.Node, origin: fx.Node) -> fx.Node:
    if origin.target is aten.slice.Tensor:
        return g.call(aten.index_select.default, origin.args[0], _counted_dim(origin), counted)
    dtype = origin.meta["val"].dtype
    return counted if counted.meta["val"].dtype == dtype else g.call(aten.to.dtype, counted, dtype)


def _copied(
    g: Builder, value: fx.Node, known: dict[fx.Node, fx.Node], tokens: Size, count: fx.Node
) -> fx.Node:
    """``value`` computed again from what stands in for the origins, as many as ``count`` has last."""
    copies: dict[fx.Node, Any] = dict(known)
    needed = sources_of([value])
    for node in list(value.graph.nodes):
        if node not in needed or node in copies or node.op != "call_function":
            continue
        if not any(source in copies for source in node.all_input_nodes):
            continue
        sizes = {n: _size(g, node, n, count, tokens) for n in node.all_input_nodes if n not in copies}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, known=copies | sizes: known[n])
        copies[node] = g.call(node.target, *args, **kwargs)
    return copies[value]  # type: ignore[no-any-return]


def _size(g: Builder, user: fx.Node, operand: fx.Node, count: fx.Node, tokens: Size) -> fx.Node | int:
    """An operand that no origin has a part in; where it is the number of tokens in a shape, that of the positions."""
    size = operand.meta.get("val")
    if not isinstance(size, torch.SymInt):
        return operand
    if same_size(size, tokens) and getattr(user.target, "overloadpacket", None) in _SHAPED:
        return g.size(count, count.meta["val"].dim() - 1)
    if expression(size).free_symbols & expression(tokens).free_symbols:
        raise NotTokenwise(user, "computes with the number of tokens, which a cache does not know beforehand")
    return operand
