"""What differs with the length of a row, or with its padding, is refused: a cache would go on with another number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import RefusedError
from tersor.passes.pipeline import run

Change = Callable[[Tensor, Any], Tensor]


class Decoder(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change, self.table, self.places = change, nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(16, 50)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        count = ids.shape[1]
        x = self.change(self.table(ids) + self.places(torch.arange(count)), mask)
        hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=hidden)
        return {"logits": self.head(x)}


def inputs(tokens: int, masked: bool = True) -> dict[str, Tensor]:
    ids = torch.randint(0, 50, (2, tokens))
    return {"ids": ids, "mask": torch.ones(2, tokens, dtype=torch.int64)} if masked else {"ids": ids}


def cached(change: Change, masked: bool = True) -> None:
    torch.manual_seed(0)
    model = Decoder(change).eval()
    program, _ = run(capture(model, inputs(6, masked)), ["kv-cache"])
    longer = inputs(15, masked)
    torch.testing.assert_close(program(**longer), model(**longer), atol=1e-5, rtol=1e-5)


WHOLE: dict[str, Change] = {
    "the count": lambda x, mask: x * (x.shape[1] // 8 + 1),
    "the count as a tensor": lambda x, mask: x * torch.full((), x.shape[1]).clamp(min=8) / 8,
    "at least": lambda x, mask: x * torch.sym_max(x.shape[1], 8) / 8,
    "the count of real tokens": lambda x, mask: x * mask.sum(1).clamp(min=8)[:, None, None] / 8,
    "every other place": lambda x, mask: (
        x + (torch.arange(0, 2 * x.shape[1], 2) - 12).clamp(min=0)[:, None] * 0.1
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_it_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match=r"number of tokens|whole of mask|counts them in no way"):
        cached(WHOLE[name], masked="real" in name)


TOKENWISE: dict[str, Change] = {
    "nothing": lambda x, mask: x * 1.0,
    "a constant": lambda x, mask: x * torch.full((), 3.0).sqrt(),
    "the place": lambda x, mask: x * torch.arange(x.shape[1])[:, None],
}


@pytest.mark.parametrize("name", TOKENWISE)
def test_what_is_each_tokens_own_is_not(name: str) -> None:
    cached(TOKENWISE[name], masked=False)


def test_rows_of_one_length_are_refused() -> None:
    program = capture(Decoder(TOKENWISE["nothing"]).eval(), inputs(6, False), dynamic={"ids": {0: "batch"}})
    with pytest.raises(RefusedError, match="rows of 6 tokens and no others"):
        run(program, ["kv-cache"])


def test_an_input_that_nothing_reads_is_named() -> None:
    with pytest.raises(RefusedError, match="nothing reads its input 'mask'"):
        cached(TOKENWISE["nothing"])
