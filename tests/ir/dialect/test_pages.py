"""Pages read and written, against loops over tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.ir.dialect import DIALECT

read, write = (DIALECT[name].overload for name in ("read_pages", "write_pages"))


@settings(max_examples=60, deadline=None)
@given(
    past=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    new=st.integers(0, 5),
    page=st.integers(1, 6),
    heads=st.integers(1, 3),
    spare=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_tokens_are_where_the_table_says(
    past: list[int], new: int, page: int, heads: int, spare: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, blocks, width = len(past), -(-(max(past) + new) // page) or 1, 2
    pages = batch * blocks + spare
    table = torch.randperm(pages, generator=generator)[: batch * blocks].reshape(batch, blocks)
    pool = torch.randn(pages, heads, page, width, generator=generator)
    tokens = torch.randn(batch, heads, new, width, generator=generator)
    before, length = pool.clone(), torch.tensor(past)
    written = write(pool, tokens, table, length)
    assert torch.equal(pool, before)
    expected = before.clone()
    for row, count in enumerate(past):
        for token in range(new):
            number = count + token
            expected[table[row, number // page], :, number % page] = tokens[row, :, token]
    assert torch.equal(written, expected)
    seen = read(written, table)
    assert seen.shape == (batch, heads, blocks * page, width)
    for row in range(batch):
        for number in range(blocks * page):
            assert torch.equal(seen[row, :, number], expected[table[row, number // page], :, number % page])
    for row, count in enumerate(past):
        # Whichever of the two runs first, what lies below is the same.
        assert torch.equal(seen[row, :, :count], read(before, table)[row, :, :count])


def test_more_tokens_than_pages_are_an_error() -> None:
    pool, new = torch.zeros(3, 1, 4, 2), torch.zeros(1, 1, 3, 2)
    with pytest.raises(IndexError, match="9 tokens do not fit into 2 pages of 4"):
        write(pool, new, torch.tensor([[2, 0]]), torch.tensor([6]))


def test_a_call_that_is_malformed_is_told_why() -> None:
    pool, table, new = torch.zeros(3, 2, 4, 2), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, 3, 2)
    length = torch.zeros(1, dtype=torch.int64)
    for name, given_, reason in (
        ("read_pages", (pool[0], table), "pool has 3 dims"),
        ("read_pages", (pool, table.int()), "table is not int64"),
        ("write_pages", (pool, new, table[0], length), "table is not int64"),
        ("write_pages", (pool, new[:, :1], table, length), "does not hold tokens"),
        ("write_pages", (pool, new.half(), table, length), "new torch.float16"),
        ("write_pages", (pool, new, table, length.int()), "past_length is not int64"),
    ):
        check = DIALECT[name].check
        assert check is not None
        assert reason in str(check(*given_))
