"""Keep the chosen tokens of a value."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import dialect_op
from ._traits import Role, Traits


def _shape(x: Tensor, index: Tensor, dim: int) -> Tensor:
    shape = list(x.shape)
    shape[0], shape[dim] = index.shape[0], index.shape[1]
    return x.new_empty(shape)


def _flops(*_: object) -> int:
    return 0


def _check(x: Tensor, index: Tensor, dim: int) -> str | None:
    if not 1 <= dim < x.dim():
        return f"token dim {dim} is outside 1 to {x.dim() - 1} (dim 0 is the batch)"
    if index.dim() != 2:
        return f"index has {index.dim()} dims, expected [batch, kept]"
    return None


@dialect_op(
    "gather_tokens",
    "(Tensor x, Tensor index, int dim) -> Tensor",
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=Traits(Role.MOVES, content=("x",), taken=True, index="index", dim="dim"),
)
def gather_tokens(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Row b of the result holds tokens ``index[b]`` of row b of ``x`` along ``dim``.

    Args:
        x: ``[batch or 1, ..., tokens at dim, ...]``; a batch of 1 serves every row.
        index: int64 ``[batch, kept]``.
        dim: the token dim, at least 1.

    Returns:
        ``x``'s shape with ``batch`` at dim 0 and ``kept`` at ``dim``.
    """
    shape = [1] * x.dim()
    shape[0], shape[dim] = index.shape
    x = x.expand(index.shape[0], *x.shape[1:])
    target = list(x.shape)
    target[dim] = index.shape[1]
    return torch.gather(x, dim, index.reshape(shape).expand(target))
