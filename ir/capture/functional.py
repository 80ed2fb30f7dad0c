"""Make an exported graph functional: no in-place writes, no views that alias."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from ..errors import CaptureError
from ..targets import functional_form, writes
from .explain import place_of

aten = torch.ops.aten

_NORMALISE = {aten.batch_norm.default, aten.native_batch_norm.default, aten.instance_norm.default}
_EFFECT_FREE = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}


class InPlaceError(CaptureError):
    """An in-place write that cannot be undone node by node."""


def make_functional(graph: fx.Graph) -> None:
    """Rewrite ``graph`` in place; the meaning of its outputs is unchanged.

    Raises:
        InPlaceError: an in-place write to a tensor of which views are read later, or to an input or a weight, which
            cannot be undone here.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        node.target = functional_form(node.target)
        if node.target in _EFFECT_FREE or node.target is torch._check:
            graph.erase_node(node)
        elif writes(node.target):
            _replace_mutation(graph, node, order)
        elif _updates_statistics(node):
            raise InPlaceError(
                f"{node.name} ({node.target}) in {node.meta.get('layer') or 'the model'}{place_of(node)} updates "
                "running statistics: leave its module in evaluation mode"
            )
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users and _is_size_check(node):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.meta.pop("stack_trace", None)
    graph.lint()


def _is_size_check(node: fx.Node) -> bool:
    return node.target in {operator.eq, operator.le, operator.lt, operator.ge, operator.gt, torch.sym_not}


def _replace_mutation(graph: fx.Graph, node: fx.Node, order: dict[fx.Node, int]) -> None:
    functional = _functional_twin(node.target)
    written = node.args[0]
    if functional is None or not isinstance(written, fx.Node):
        raise InPlaceError(
            f"{node.name} ({node.target}) in {node.meta.get('layer') or 'the model'} writes in place and has no "
            "functional form; write it out of place"
        )
    base: fx.Node = written
    chain: list[fx.Node] = []
    while _is_view(base):
        chain.append(base)
        base = base.args[0]  # type: ignore[assignment]
    late = (
        user
        for alias in _views_of(base, node)
        if alias not in chain
        for user in alias.users
        if order.get(user, 0) > order[node]
    )
    if base.op != "call_function" or len(chain) > 1 or any(late):
        raise InPlaceError(
            f"{node.name} ({node.target}) in {node.meta.get('layer') or 'the model'}{place_of(node)} writes in place "
            "to what is read through other views or outlives the call; write it out of place"
        )
    node.target = functional
    _rebind(written, node, order)
    if chain:
        with graph.inserting_after(node):
            merged = _scatter_back(graph, chain[0], base, node)
        merged.meta = dict(base.meta)
        order[merged] = order[node]
        _rebind(base, merged, order)


def _rebind(old: fx.Node, new: fx.Node, order: dict[fx.Node, int]) -> None:
    """Let every use of ``old`` after ``new`` read ``new``."""
    for user in list(old.users):
        if user is not new and (user not in order or order[user] > order[new]):
            user.replace_input_with(old, new)


def _scatter_back(graph: fx.Graph, view: fx.Node, base: fx.Node, value: fx.Node) -> fx.Node:
    twins = {
        aten.slice.Tensor: aten.slice_scatter.default,
        aten.select.int: aten.select_scatter.default,
        aten.alias.default: None,
    }
    if view.target not in twins:
        raise InPlaceError(f"{value.name} writes in place through {view.target}; write it out of place")
    twin = twins[view.target]
    if twin is None:
        return value
    return graph.call_function(twin, (base, value, *view.args[1:]), dict(view.kwargs))


def _views_of(base: fx.Node, writer: fx.Node) -> Iterator[fx.Node]:
    """Every value that shares the memory of ``base``, views of views included, but not what ``writer`` returns."""
    for user in base.users:
        if user is not writer and _is_view(user) and user.args[0] is base:
            yield user
            yield from _views_of(user, writer)


def _updates_statistics(node: fx.Node) -> bool:
    """Whether a normalisation writes its running mean, which its schema does not say."""
    if node.target not in _NORMALISE:
        return False
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    learns = given.get("training") is True or given.get("use_input_stats") is True
    return learns and given.get("running_mean") is not None


def _is_view(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments:
        return False
    first = schema.arguments[0].alias_info
    return first is not None and not first.is_write and bool(node.args) and isinstance(node.args[0], fx.Node)


def _functional_twin(target: Any) -> Any:
    packet_name = target._schema.name.split("::")[1]
    if not packet_name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, target.namespace), packet_name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None
