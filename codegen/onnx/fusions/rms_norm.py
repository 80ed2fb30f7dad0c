"""The root-mean-square norm of heads, written before the transpose that put them first.

ONNX Runtime makes one operator of such a norm where its weight is a vector.  Behind a transpose it moves that through
the norm first, gives the weight more dims on the way, and then finds no norm: six operators stay, for the queries and
the keys of every layer.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from tersor.ir.operands import arguments

from ..emitter import Emitter
from ..lowerings.norms import rms_norm
from ..peephole import transpose_of, transposed
from .forms import call, either_way, is_float32, uncast
from .registry import Values, fuses

aten = torch.ops.aten


@fuses(aten.mul.Tensor)
def norm_of_heads(e: Emitter, node: fx.Node, value: Values) -> ir.Value | None:
    """``weight * (x * rsqrt(mean(x ** 2, -1) + eps))``, where ``x`` is a transpose that leaves the last dim last."""
    if not is_float32(node):
        return None
    for scaled, weight in either_way(node):
        found = _normed(scaled)
        if found is None or not isinstance(weight, fx.Node) or weight.meta["val"].dim() != 1:
            continue
        x, epsilon = found
        moved, width = transpose_of(value(x)), weight.meta["val"].shape[0]
        if moved is None or moved[1][-1] != len(moved[1]) - 1 or x.meta["val"].shape[-1] != width:
            continue
        source, order = moved
        return transposed(e, rms_norm(e, source, [width], value(weight), epsilon), order)
    return None


def _normed(node: object) -> tuple[fx.Node, float] | None:
    """What is normed without a weight, and epsilon."""
    product = call(node, aten.mul.Tensor)
    for x, root in () if product is None else either_way(product):
        inverse = call(root, aten.rsqrt.default)
        shifted = inverse and call(inverse.args[0], aten.add.Tensor)
        mean = shifted and call(shifted.args[0], aten.mean.dim)
        square = mean and call(mean.args[0], aten.pow.Tensor_Scalar)
        if not shifted or not mean or not square or not isinstance(shifted.args[1], float):
            continue
        given, rank = arguments(mean), mean.meta["val"].dim()
        last = [dim % rank for dim in given["dim"]] == [rank - 1] and given["keepdim"]
        same = uncast(square.args[0]) is uncast(x)
        if (
            last
            and same
            and square.args[1] == 2
            and shifted.kwargs.get("alpha", 1) == 1
            and is_float32(square)
        ):
            return x, shifted.args[1]  # type: ignore[return-value]
    return None
