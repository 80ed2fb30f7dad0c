"""Operators that torch itself writes in others, as ``movedim`` in ``permute``, and that no rule here knows."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..analyses.token_rules import find_rule
from ..builder import Builder
from ..errors import VerifierError
from ..shapes import Size, SymbolTable, expression, for_all_sizes
from ..targets import functional_form, writes
from ._pattern import Pattern, WhyNot, calls

aten = torch.ops.aten


class _Unknown(Exception):
    """A value that is none of the composite's operands and none of what was computed of them."""


class _Written(TorchDispatchMode):
    """Writes the operators that a call comes to into the graph, while the call runs on fake values.

    Sizes that are not fixed have symbols of their own there, so that what the call asks of them is not demanded of the
    program's.
    """

    def __init__(self, g: Builder) -> None:
        super().__init__()
        self._g = g
        self._table = SymbolTable()
        # Kept alive, so that no other value gets its id.
        self._known: dict[int, tuple[Any, fx.Node]] = {}
        self._sizes: list[tuple[Any, fx.Node, int | None]] = []
        self.nodes: list[fx.Node] = []

    def result_of(self, node: fx.Node) -> Any:
        """What ``node`` returns, as nodes that have been written.

        Raises:
            _Unknown: it asks what holds for some sizes only, or computes with sizes.
        """
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._operand)
        with self._table.mode, torch.no_grad(), enable_python_dispatcher(), for_all_sizes(), self:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        if self._table.shape_env.guards or self._table.shape_env.replacements:
            raise _Unknown
        return tree_map(self._node_of, result)

    def _operand(self, node: fx.Node) -> Any:
        value: Any = node.meta["val"]
        if isinstance(value, torch.SymInt):
            own = self._size(value)
            self._sizes.append((own, node, None))
        elif isinstance(value, Tensor):
            own = self._table.tensor([self._size(size) for size in value.shape], value.dtype)
            self._known[id(own)] = (own, node)
            self._sizes.extend((size, node, dim) for dim, size in enumerate(own.shape))
        else:
            raise _Unknown
        return own

    def _size(self, size: Size) -> Size:
        if not isinstance(size, torch.SymInt):
            return size
        return self._table.symbol(str(expression(size)), size.node.hint if size.node.has_hint() else 2)

    def _node_of(self, value: Any) -> Any:
        """What stands for ``value`` in the graph."""
        if isinstance(value, Tensor):
            if id(value) not in self._known:
                raise _Unknown
            return self._known[id(value)][1]
        if isinstance(value, torch.SymFloat | torch.SymBool):
            raise _Unknown
        if not isinstance(value, torch.SymInt):
            return value
        for size, node, dim in self._sizes:
            if expression(size) == expression(value):
                return node if dim is None else self._g.size(node, dim)
        raise _Unknown

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            return result  # It asks for a device or a layout.
        if writes(func):
            raise _Unknown
        given, named = tree_map(self._node_of, (args, kwargs or {}))
        node = self._g.call(functional_form(func), *given, **named)
        self.nodes.append(node)
        if isinstance(result, Tensor):
            self._known[id(result)] = (result, node)
        else:
            for index, each in enumerate(result):
                self.nodes.append(self._g.item(node, index))
                self._known[id(each)] = (each, self.nodes[-1])
        return result


class Composite(Pattern[fx.Node]):
    """A composite that has no rule for the token axis while all of its parts have one."""

    name = "composite"

    def anchor(self, node: fx.Node) -> bool:
        target: Any = node.target
        # Attention that was not raised stays as it was written.
        return (
            isinstance(target, torch._ops.OpOverload)
            and not calls(node, aten.scaled_dot_product_attention)
            and torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
            and find_rule(node) is None
        )

    def match(self, node: fx.Node) -> fx.Node:
        return node

    def apply(self, node: fx.Node, match: fx.Node) -> WhyNot | None:
        written = _Written(self.builder(node))
        try:
            result = written.result_of(node)
        except (_Unknown, RuntimeError, VerifierError):
            return None  # What has been written is read by nothing, and goes with all that is dead.
        if all(find_rule(part) is not None for part in written.nodes):
            _replace(node, result)
        return None


def _replace(node: fx.Node, result: Any) -> None:
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
        return
    for user in [user for user in node.users if user.target is operator.getitem]:
        user.replace_all_uses_with(result[user.args[1]])
