"""A model that takes a single row to hold no padding: the Program takes two rows or more then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import InputError

IDS = torch.randint(4, 60, (2, 7), generator=torch.Generator().manual_seed(0))
SEGMENTS = torch.zeros(2, 7, dtype=torch.int64)


class Alone(nn.Module):
    """``apply(scores, ids, other)`` hides what is padding, of several rows only."""

    def __init__(self, apply: Callable[[Tensor, Tensor, Any], Tensor], rows: int = 1) -> None:
        super().__init__()
        self.apply_mask, self.rows, self.table = apply, rows, nn.Embedding(64, 16)

    def forward(self, ids: Tensor, other: Tensor | None = None) -> Tensor:
        x = self.table(ids)
        scores = x @ x.transpose(1, 2) / 4
        if ids.shape[0] > self.rows:
            scores = self.apply_mask(scores, ids, other)
        # It is read in any case.
        return scores.softmax(-1) @ x + (0 if other is None else 0 * other.float().mean())


def hidden(scores: Tensor, keys: Tensor) -> Tensor:
    return scores.masked_fill(keys, -1e9)


CASES: dict[str, tuple[Callable[[Tensor, Tensor, Any], Tensor], Tensor | None]] = {
    "ids": (lambda s, i, o: hidden(s, (i == 3)[:, None]), None),
    "ids beside segments": (lambda s, i, o: hidden(s, (i == 2)[:, None]), SEGMENTS),
    "the last id": (lambda s, i, o: hidden(s, (i == 63)[:, None]), SEGMENTS),
    "a mask": (lambda s, i, o: hidden(s, (o == 0)[:, None]), torch.ones(2, 7).long()),
    "a mask of scores": (lambda s, i, o: s + o[:, None], torch.zeros(2, 7)),
    "a mask of scores of four dims": (lambda s, i, o: s + o[:, 0], torch.zeros(2, 1, 1, 7)),
    "a mask of queries": (lambda s, i, o: hidden(s, ~o), torch.ones(2, 7, 7).bool()),
    "lengths": (
        lambda s, i, o: hidden(s, (torch.arange(i.shape[1])[None] >= o[:, None])[:, None]),
        torch.tensor([7, 7]),
    ),
}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_padding_of_one_row_is_tried_though_the_example_has_none(name: str, rows: int) -> None:
    apply, other = CASES[name]
    example = {"ids": IDS[:rows]} | ({} if other is None else {"other": other[:rows]})
    torch.manual_seed(0)
    model = Alone(apply).eval()
    program = capture(model, example)
    assert program.ranges["batch"] == (2, None)
    assert "batch is 2 or more" in program.notes["capture"][-1]
    with pytest.raises(InputError, match="batch = 1"):
        program(**{key: value[:1] for key, value in example.items()})
    two = {key: value[:1].repeat_interleave(2, 0) for key, value in example.items()}
    torch.testing.assert_close(program(**two), model(**two), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_treats_all_batches_alike_takes_one_row(name: str) -> None:
    apply, other = CASES[name]
    torch.manual_seed(0)
    program = capture(Alone(apply, rows=0).eval(), {"ids": IDS} | ({} if other is None else {"other": other}))
    assert program.ranges.get("batch", (1, None)) == (1, None)
    assert "capture" not in program.notes
