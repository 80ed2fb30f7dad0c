"""Products with a matrix, by operator: where its operands are, and how they meet."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

aten = torch.ops.aten


class Product(NamedTuple):
    """``left [..., n]`` times ``right``, whose dim ``inner`` has the ``n``.

    Attributes:
        left, right: places among the operator's arguments.
    """

    left: int
    right: int
    inner: int


# `matmul` is one where its right operand is a matrix.
PRODUCTS: dict[Any, Product] = {
    aten.linear.default: Product(0, 1, 1),
    aten.mm.default: Product(0, 1, 0),
    aten.matmul.default: Product(0, 1, 0),
    aten.addmm.default: Product(1, 2, 0),
}
