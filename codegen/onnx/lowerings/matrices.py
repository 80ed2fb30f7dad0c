"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch

from ..emitter import Emitter, stored_name
from ..registry import lowers

aten = torch.ops.aten


@lowers(aten.linear.default)
def linear(e: Emitter, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> Any:
    """``MatMul`` by the transposed weight and ``Add``, the form that ONNX Runtime's fusions look for.

    A weight that only linear layers read is stored transposed.  One that is read otherwise too (a tied embedding)
    is stored once, as it is, and multiplied by ``Gemm``, which transposes while it packs.  One that is stored
    otherwise than the Program holds it has a product of its own.
    """
    assert e.node is not None
    stored = stored_name(e.node.args[1])
    product = _kept_product(e, stored, x, bias)
    if product is not NotImplemented:
        return product
    if stored is not None and stored not in e.shared:
        product = e.op("MatMul", x, e.transposed_weight(stored))
        return product if bias is None else e.op("Add", product, bias)
    if e.fake(weight).dim() != 2:
        return NotImplemented
    if stored is None:
        product = e.op("MatMul", x, e.op("Transpose", weight, perm=[1, 0]))
        return product if bias is None else e.op("Add", product, bias)
    rows = e.op("Reshape", x, e.ints([-1, int(e.fake(weight).shape[1])]))
    product = e.op("Gemm", rows, weight, bias, transB=1)
    return e.reshape(product, e.result.shape, current=())


def _kept_product(e: Emitter, name: str | None, x: ir.Value, bias: ir.Value | None = None) -> Any:
    """The product with a weight that is stored otherwise than the Program holds it; NotImplemented with any other."""
    if name is None or name not in e.stored:
        return NotImplemented
    return e.stored[name].product(e, name, x, bias)


@lowers(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(e: Emitter, left: ir.Value, right: ir.Value) -> ir.Value:
    assert e.node is not None
    product = _kept_product(e, stored_name(e.node.args[1]), left)
    return e.op("MatMul", left, right) if product is NotImplemented else product


@lowers(aten.addmm.default)
def addmm(
    e: Emitter, bias: ir.Value, left: ir.Value, right: ir.Value, *, beta: float = 1, alpha: float = 1
) -> ir.Value:
    assert e.node is not None
    product = _kept_product(e, stored_name(e.node.args[2]), left)
    if product is not NotImplemented:
        return e.op("Add", product, bias)
    return e.op("Gemm", left, right, bias, alpha=float(alpha), beta=float(beta))


@lowers(aten.einsum.default)
def einsum(e: Emitter, equation: str, tensors: Sequence[ir.Value], **_: Any) -> ir.Value:
    return e.op("Einsum", *(e.cast(t, e.result.dtype) for t in tensors), equation=equation)


@lowers(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def convolution(
    e: Emitter,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> ir.Value:
    spatial = e.fake(weight).dim() - 2
    pads = _each(padding, spatial)
    unbatched = e.fake(x).dim() == spatial + 1
    x = e.op("Unsqueeze", x, e.ints([0])) if unbatched else x
    result = e.op(
        "Conv", x, weight, bias,
        strides=_each(stride, spatial), pads=[*pads, *pads], dilations=_each(dilation, spatial), group=groups,
    )  # fmt: skip
    return e.op("Squeeze", result, e.ints([0])) if unbatched else result


@lowers(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolution_padding(
    e: Emitter,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> ir.Value:
    if padding == "valid":
        return convolution(e, x, weight, bias, stride, 0, dilation, groups)
    spatial = e.fake(weight).dim() - 2
    dilations = _each(dilation, spatial)
    total = [d * (int(k) - 1) for d, k in zip(dilations, e.fake(weight).shape[2:], strict=True)]
    pads = [t // 2 for t in total] + [t - t // 2 for t in total]
    return e.op("Conv", x, weight, bias, strides=[1] * spatial, pads=pads, dilations=dilations, group=groups)


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
