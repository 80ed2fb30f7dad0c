"""The norms that may follow a gather, matched downwards from the gathered value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tersor.ir.operands import arguments

aten = torch.ops.aten

_CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default)


@dataclass(frozen=True)
class Norm:
    """A norm over the last dim of a value: ``kind`` is ``layer`` or ``rms``, ``result`` the node that holds it."""

    kind: str
    weight: fx.Node | None
    bias: fx.Node | None
    epsilon: float
    result: fx.Node


def find_norm(value: fx.Node) -> Norm | None:
    """The norm that reads ``value`` ``[batch, tokens, channels]``, if one does.

    Matches ``layer_norm`` and ``rms_norm`` over the channels, and the root-mean-square norm as models write it::

        x = value.to(float32)
        x = x * rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
        x = weight * x.to(dtype)                 # or (x * weight).to(dtype); weight is optional
    """
    for alias in _aliases(value):
        for user in alias.users:
            norm = _operator_norm(user, alias) or _written_norm(user, alias)
            if norm is not None:
                return norm
    return None


def _operator_norm(node: fx.Node, value: fx.Node) -> Norm | None:
    kinds = {aten.layer_norm.default: "layer", aten.rms_norm.default: "rms"}
    if node.target not in kinds or node.args[0] is not value:
        return None
    given = arguments(node)
    if len(given["normalized_shape"]) != 1:
        return None
    epsilon = given["eps"]
    if epsilon is None:
        epsilon = torch.finfo(node.meta["val"].dtype).eps
    return Norm(kinds[node.target], given["weight"], given.get("bias"), float(epsilon), node)


def _written_norm(node: fx.Node, value: fx.Node) -> Norm | None:
    if node.target is not aten.pow.Tensor_Scalar or node.args[1] != 2:
        return None
    mean = _only_user(node, aten.mean.dim)
    if mean is None or not _is_mean_of_last(mean):
        return None
    shifted = _only_user(mean, aten.add.Tensor)
    if shifted is None or not isinstance(shifted.args[1], float) or shifted.kwargs.get("alpha", 1) != 1:
        return None
    root = _only_user(shifted, aten.rsqrt.default)
    scaled = None if root is None else _only_user(root, aten.mul.Tensor)
    if root is None or scaled is None or value not in scaled.args:
        return None
    weight = None
    result = _last_cast(scaled)
    product = _only_user(result, aten.mul.Tensor)
    if product is not None:
        factor = next((a for a in product.args if a is not result), None)
        if isinstance(factor, fx.Node) and _is_channel_vector(factor, value):
            weight, result = factor, _last_cast(product)
    return Norm("rms", weight, None, shifted.args[1], result)


def _aliases(value: fx.Node) -> Iterator[fx.Node]:
    """``value`` and its casts to float32, in which models compute their norms."""
    yield value
    for user in value.users:
        if user.target in _CASTS and user.args[0] is value and user.meta["val"].dtype == torch.float32:
            yield user


def _only_user(node: fx.Node, target: Any) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def _last_cast(node: fx.Node) -> fx.Node:
    """The end of the chain of casts that alone read ``node``."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.target not in _CASTS or user.args[0] is not node:
            break
        node = user
    return node


def _is_mean_of_last(node: fx.Node) -> bool:
    given = arguments(node)
    rank = node.meta["val"].dim()
    return bool(given["keepdim"]) and [dim % rank for dim in given["dim"]] == [rank - 1]


def _is_channel_vector(node: fx.Node, value: fx.Node) -> bool:
    shape, channels = node.meta["val"].shape, value.meta["val"].shape[-1]
    return len(shape) == 1 and isinstance(channels, int) and shape[0] == channels
