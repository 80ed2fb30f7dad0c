"""The tokens of every row, out of pages that rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import dialect_op
from ._traits import Traits


def _shape(pool: Tensor, table: Tensor) -> Tensor:
    _, heads, page, width = pool.shape
    return pool.new_empty(table.shape[0], heads, table.shape[1] * page, width)


def _flops(*_: object) -> int:
    return 0


def table_flaw(pool: Tensor, table: Tensor) -> str | None:
    """Why these are no pool of pages and no table of them; None where they are."""
    if pool.dim() != 4:
        return f"pool has {pool.dim()} dims, expected [pages, heads, page, width]"
    if table.dim() != 2 or table.dtype != torch.int64:
        return "table is not int64 [batch, blocks]"
    return None


@dialect_op(
    "read_pages",
    "(Tensor pool, Tensor table) -> Tensor",
    shape=_shape,
    flops=_flops,
    check=table_flaw,
    traits=Traits(content=("pool",), taken=True),
)
def read_pages(pool: Tensor, table: Tensor) -> Tensor:
    """Row b of the result holds the tokens of pages ``table[b]``, one page behind the other.

    Args:
        pool: ``[pages, heads, page, width]``, ``page`` tokens each.
        table: int64 ``[batch, blocks]``, the page that holds each block of a row's tokens.

    Returns:
        ``[batch, heads, blocks * page, width]``.
    """
    _, heads, page, width = pool.shape
    batch, blocks = table.shape
    return pool[table].transpose(1, 2).reshape(batch, heads, blocks * page, width)
