"""The last resort: one operator's core ATen decomposition, traced on that one node."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from tersor.ir.targets import writes


@functools.cache
def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """The decompositions to core ATen, with those of composite operators that torch writes in C++."""
    return torch.export.default_decompositions()


def decomposed(node: fx.Node) -> fx.GraphModule | None:
    """The decomposition of ``node`` as a graph over its tensor operands in order, or None if there is none.

    Raises:
        Exception: whatever the decomposition raises for these operands.
    """
    table = dict(decompositions().items())
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    leaves, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    values = [leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    positions = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    mode = next((m for v in values if (m := getattr(v, "fake_mode", None)) is not None), None)
    if mode is None:
        return None

    def call(*tensors: Tensor) -> Any:
        filled = list(values)
        for position, tensor in zip(positions, tensors, strict=True):
            filled[position] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return target(*args, **kwargs)

    with mode, torch.no_grad():
        given = [values[i] for i in positions]
        module = make_fx(call, decomposition_table=table)(*given)
        if any(writes(inner.target) for inner in module.graph.nodes):
            # Some decompositions write to what they made on the way, as cosine_similarity does.
            without = functionalize(call, remove="mutations")
            with enable_python_dispatcher():
                module = make_fx(without, decomposition_table=table)(*given)
    if any(inner.target is target for inner in module.graph.nodes):
        return None
    return module


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """The tensor operands of ``node`` in the order of :func:`decomposed`'s placeholders."""
    leaves, _ = pytree.tree_flatten((node.args, dict(node.kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta["val"], Tensor)]
