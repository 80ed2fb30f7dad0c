"""Put kept tokens back among all the tokens."""

from __future__ import annotations

from torch import Tensor

from ._op import dialect_op
from ._traits import Role, Traits


def _shape(base: Tensor, index: Tensor, x: Tensor) -> Tensor:
    return base.new_empty(base.shape)


def _flops(*_: object) -> int:
    return 0


def _check(base: Tensor, index: Tensor, x: Tensor) -> str | None:
    if base.dim() != x.dim() or base.dim() < 2:
        return f"base has {base.dim()} dims and x {x.dim()}; both need [batch, tokens, ...]"
    return None


@dialect_op(
    "scatter_tokens",
    "(Tensor base, Tensor index, Tensor x) -> Tensor",
    shape=_shape,
    flops=_flops,
    check=_check,
    traits=Traits(Role.MOVES, content=("x",), onto="base"),
)
def scatter_tokens(base: Tensor, index: Tensor, x: Tensor) -> Tensor:
    """``base [batch, tokens, ...]`` with token ``index[b, i]`` replaced by ``x[b, i]``; the inverse of a gather.

    Args:
        base: value of the tokens that were not kept, usually their hidden state when they were dropped.
        index: int64 ``[batch, kept]``, no index twice in a row.
        x: ``[batch, kept, ...]``.
    """
    shape = (*index.shape, *([1] * (x.dim() - 2)))
    return base.scatter(1, index.reshape(shape).expand_as(x), x)
