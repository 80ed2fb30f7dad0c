"""Shape inference that knows repeated calls: the layers of a model are inferred once, not once each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves

from .program import Program
from .shapes import expression, fake_call, fake_mode

_OF_A_MODE = "_tersor_inference"
# What results are made of is more than shapes.
_DATA = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def inference_of(mode: FakeTensorMode) -> Inference:
    """The inference of a fake mode: all Programs with values in that mode, one edited from the other, share it."""
    known = getattr(mode, _OF_A_MODE, None)
    if known is None:
        known = Inference(mode)
        # What it knows is about this mode's symbols, and must not outlive them.
        setattr(mode, _OF_A_MODE, known)
    return known


class Inference:
    """Infers what nodes return; equal calls share one fake value, as long as nothing but its shape is asked for."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Any, Any] = {}
        # Of what is known, which keeps them alive.
        self._shared: set[int] = set()

    def __call__(self, node: fx.Node) -> Any:
        """What ``node`` returns for its operands' ``meta["val"]``.

        Raises:
            VerifierError: the operator rejects its operands; the message names the node.
        """
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        key = (node.target, signature(args), signature(kwargs))
        if key in self._known:
            return self._known[key]
        if not _DATA.isdisjoint(getattr(node.target, "tags", ())):
            self._give_own_values(node)
        with self._mode, torch.no_grad():
            value = fake_call(node)
        # A size that depends on data is another one at every call.
        if not free_unbacked_symbols(value):
            self._known[key] = value
            self._shared.update(id(tensor) for tensor in tree_leaves(value))
        return value

    def _give_own_values(self, node: fx.Node) -> None:
        """Let no operand of ``node`` share its value with another node.

        What an operator finds out of data (how many entries are not zero) torch notes on the value that it read.
        """
        for operand in node.all_input_nodes:
            value = operand.meta["val"]
            if id(value) in self._shared and isinstance(value, Tensor):
                with self._mode:
                    own = torch.empty_strided(
                        value.shape, value.stride(), dtype=value.dtype, device=value.device
                    )
                operand.meta["val"] = own


def infer_shapes(program: Program, start: fx.Node | None = None, end: fx.Node | None = None) -> None:
    """Recompute ``meta["val"]`` of every call node, from ``start`` to ``end`` where they are given.

    Raises:
        VerifierError: an operator rejects the shapes of its operands; the message names the node.
    """
    mode = fake_mode(program)
    for node in program.graph.nodes:
        if node.op == "get_attr" and "val" not in node.meta:
            weight = program.weights[node.target]
            with mode:
                node.meta["val"] = torch.empty(tuple(weight.shape), dtype=weight.dtype, device=weight.device)
    propagate(program.graph, mode, start, end)


def propagate(
    graph: fx.Graph, mode: FakeTensorMode, start: fx.Node | None = None, end: fx.Node | None = None
) -> None:
    """Compute the fake value of every call node of ``graph``, from ``start`` to ``end`` where they are given."""
    infer = inference_of(mode)
    active = start is None
    for node in graph.nodes:
        active = active or node is start
        if active and node.op == "call_function":
            node.meta["val"] = infer(node)
        if node is end:
            return


def signature(value: Any) -> Any:
    """A hashable stand-in for an argument, equal for arguments that any operator treats alike.

    Tensors are told apart by type and layout, numbers by value and type: Python holds 1, 1.0 and True equal.
    """
    if isinstance(value, Tensor):
        sizes = tuple(expression(size) for size in value.shape)
        return value.dtype, value.device, sizes, tuple(expression(step) for step in value.stride())
    if isinstance(value, torch.SymInt | torch.SymBool | torch.SymFloat):
        return type(value), value.node.expr
    if isinstance(value, list | tuple):
        return type(value), tuple(signature(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, signature(item)) for key, item in sorted(value.items()))
    return type(value), repr(value)
