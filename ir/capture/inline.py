"""Replace export's wrapped regions (no-grad, autocast-off) by their bodies: inference needs no wrapper."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..errors import CaptureError

TRANSPARENT = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}


def inline_regions(graph: fx.Graph, owner: fx.GraphModule) -> None:
    """Inline every transparent higher-order call in ``graph``; submodules are looked up on ``owner``.

    Raises:
        CaptureError: an autocast region that is switched on would change dtypes when inlined.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        if str(node.target) not in TRANSPARENT:
            continue
        position = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr")
        settings, body_node, operands = node.args[:position], node.args[position], node.args[position + 1 :]
        if str(node.target) == "wrap_with_autocast" and len(settings) >= 3 and settings[2]:
            raise CaptureError(
                f"{node.meta.get('layer', 'the model')} runs under autocast: capture it without autocast, with the "
                "weights in the dtype you want"
            )
        body = getattr(owner, str(body_node.target))
        inline_regions(body.graph, body)
        _splice(graph, node, body.graph, operands)
        if not body_node.users:
            graph.erase_node(body_node)


def _splice(graph: fx.Graph, call: fx.Node, body: fx.Graph, operands: tuple[Any, ...]) -> None:
    mapping: dict[fx.Node, Any] = {}
    arguments = iter(operands)
    result: Any = None
    with graph.inserting_before(call):
        for inner in body.nodes:
            if inner.op == "placeholder":
                mapping[inner] = next(arguments)
            elif inner.op == "output":
                result = fx.map_arg(inner.args[0], lambda n: mapping[n])
            else:
                new = graph.node_copy(inner, lambda n: mapping[n])
                new.meta = {k: v for k, v in inner.meta.items() if k in ("val", "stack_trace")}
                new.meta["layer"] = call.meta.get("layer", "")
                mapping[inner] = new
    if isinstance(result, fx.Node):
        call.replace_all_uses_with(result)
    else:
        for user in list(call.users):
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(call)
