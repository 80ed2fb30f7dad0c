"""Which functions a node may call, and their names in text and in archives."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

NAMESPACES = ("aten", "tersor", "prims")

# Arithmetic on sizes.  An archive can name these and the operators above, nothing else.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "abs",
            "lshift", "rshift",
            "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_",
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "_sym_sqrt", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum")
    },
    **{f"builtins.{function.__name__}": function for function in (min, max, round)},
}  # fmt: skip
_FUNCTIONAL_FORMS = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}
_NAMES = {function: name for name, function in _FUNCTIONS.items()}
_OPERATOR = re.compile(r"(\w+)\.(\w+)\.(\w+)")


def target_name(target: Any) -> str:
    """A target's name, such as ``aten.add.Tensor`` or ``operator.getitem``.

    Raises:
        ValueError: the IR does not allow the target; the message says why.
    """
    if not isinstance(target, torch._ops.OpOverload):
        name = _NAMES.get(target) if callable(target) else None
        if name is None:
            raise ValueError("it calls neither an ATen operator, a dialect operator nor arithmetic on sizes")
        return name
    if target.namespace not in NAMESPACES:
        raise ValueError(f"operator namespace {target.namespace!r} is none of {', '.join(NAMESPACES)}")
    if target._schema.is_mutable:
        raise ValueError("it writes to an operand; use the functional form")
    if touches_files(target):
        raise ValueError("it reads or writes files")
    return f"{target.namespace}.{target._opname}.{target._overloadname}"


def touches_files(target: torch._ops.OpOverload) -> bool:
    """Whether an operator takes the name of a file, as ``aten.from_file`` and ``aten.save`` do."""
    return any(argument.name == "filename" for argument in target._schema.arguments)


def find_target(name: str) -> Any:
    """The function called ``name``; the inverse of :func:`target_name`.

    Raises:
        ValueError: there is no such function, or the IR does not allow it.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    match = _OPERATOR.fullmatch(name)
    if match is None or match[1] not in NAMESPACES:
        raise ValueError(f"{name!r} is not the name of an operator")
    packet = getattr(getattr(torch.ops, match[1]), match[2], None)
    overload = getattr(packet, match[3], None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or not isinstance(overload, torch._ops.OpOverload):
        raise ValueError(f"this version of torch has no operator {name!r}")
    target_name(overload)
    return overload


def writes(target: Any) -> bool:
    """Whether calling ``target`` changes one of its operands."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def functional_form(target: Any) -> Any:
    """What a functional graph calls in the place of ``target``: a view is a reshape, right whatever its strides."""
    return _FUNCTIONAL_FORMS.get(target, target)
