"""New tokens of every row, put into pages that rows share."""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import InPlace, dialect_op
from .read_pages import table_flaw


def _shape(pool: Tensor, *_: object) -> Tensor:
    return torch.empty_like(pool)


def _flops(*_: object) -> int:
    return 0


def _check(pool: Tensor, new: Tensor, table: Tensor, past_length: Tensor) -> str | None:
    if (flaw := table_flaw(pool, table)) is not None:
        return flaw
    if new.dim() != 4 or new.shape[1] != pool.shape[1] or new.shape[3] != pool.shape[3]:
        return f"pool {list(pool.shape)} does not hold tokens {list(new.shape)}"
    if new.dtype != pool.dtype:
        return f"pool is {pool.dtype}, new {new.dtype}"
    if past_length.dim() != 1 or past_length.dtype != torch.int64:
        return "past_length is not int64 [batch]"
    return None


def _write(pool: Tensor, new: Tensor, table: Tensor, past_length: Tensor) -> Tensor:
    """See :func:`write_pages`; into ``pool`` itself."""
    page, count = pool.shape[2], new.shape[2]
    room = table.shape[1] * page
    number = past_length[:, None] + torch.arange(count, device=past_length.device)[None]
    if number.numel() and int(number.max()) >= room:
        raise IndexError(f"{int(number.max()) + 1} tokens do not fit into {table.shape[1]} pages of {page}")
    pages = table.gather(1, number // page)
    # Indices around a slice put their own dims first.
    pool[pages, :, number % page] = new.transpose(1, 2)
    return pool


@dialect_op(
    "write_pages",
    "(Tensor pool, Tensor new, Tensor table, Tensor past_length) -> Tensor",
    shape=_shape,
    flops=_flops,
    check=_check,
    in_place=InPlace(_write, ("pool",)),
)
def write_pages(pool: Tensor, new: Tensor, table: Tensor, past_length: Tensor) -> Tensor:
    """``pool`` with the new tokens behind the ``past_length`` tokens of their row.

    New token ``j`` of row ``b`` is number ``n = past_length[b] + j`` of that row, and goes to slot ``n % page`` of page
    ``table[b, n // page]``.  No two rows write to one page.  Nothing that ``read_pages`` gives below ``past_length`` is
    changed, so that it does not matter which of the two runs first where the result is written over ``pool``.

    Args:
        pool: ``[pages, heads, page, width]``, ``page`` tokens each.
        new: ``[batch, heads, new, width]``.
        table: int64 ``[batch, blocks]``, the page that holds each block of a row's tokens.
        past_length: int64 ``[batch]``; with the new tokens no more than there is room for in ``blocks`` pages.

    Returns:
        ``pool``'s shape.
    """
    return _write(pool.clone(), new, table, past_length)
