"""Operators that hold functions: export's wrappers (no-grad, autocast-off) give way to their bodies."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..errors import CaptureError
from .explain import layer_of, place_of

TRANSPARENT = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}
_STEPS = "write the loop in Python with a fixed number of steps"
_WAYS_OUT = {
    "cond": "compute both sides and choose with torch.where",
    "while_loop": _STEPS,
    "scan": _STEPS,
    "map_impl": "work on all rows at once or use torch.vmap",
    "flex_attention": (
        "call torch.nn.functional.scaled_dot_product_attention, with what score_mod adds and what the block mask hides "
        "in its attn_mask"
    ),
}


def call_of(operator: torch._ops.HigherOrderOperator) -> str:
    """That ``operator`` is called, by the name under which users know it."""
    return f"it calls {str(operator).removesuffix('_impl')}"


def way_out(operator: torch._ops.HigherOrderOperator) -> str:
    """Why no Program can hold ``operator``, and what to write in its place."""
    mend = _WAYS_OUT.get(str(operator), "write what it does with operators on tensors")
    return f"that is an operator that calls functions, and a Program holds operators on tensors only: {mend}"


def refuse_regions(owner: fx.GraphModule, what: str) -> None:
    """Raise CaptureError for the first operator that holds functions and is used; ``what`` is what is captured."""
    for node in owner.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator) and node.users:
            if str(node.target) not in TRANSPARENT:
                layer = f", in {layer_of(node)}" if layer_of(node) else ""
                raise CaptureError(
                    f"cannot capture {what}: {call_of(node.target)}{place_of(node)}{layer}; {way_out(node.target)}"
                )
            refuse_regions(_body(owner, node)[1], what)


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
        position, body = _body(owner, node)
        settings, body_node, operands = node.args[:position], node.args[position], node.args[position + 1 :]
        if str(node.target) == "wrap_with_autocast" and len(settings) >= 3 and settings[2]:
            raise CaptureError(
                f"{node.meta.get('layer', 'the model')} runs under autocast: capture it without autocast, with the "
                "weights in the dtype you want"
            )
        inline_regions(body.graph, body)
        _splice(graph, node, body.graph, operands)
        if not body_node.users:
            graph.erase_node(body_node)


def _body(owner: fx.GraphModule, call: fx.Node) -> tuple[int, fx.GraphModule]:
    """Which argument of ``call`` is its body, and the body."""
    position, node = next(
        (i, a) for i, a in enumerate(call.args) if isinstance(a, fx.Node) and a.op == "get_attr"
    )
    return position, getattr(owner, str(node.target))


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
