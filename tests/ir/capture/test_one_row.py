"""A model that takes a single row for something else: the Program takes what the example has, one row or more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture
from tersor.ir.errors import CaptureError, InputError
from tersor.ir.program import Program

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


def check_takes_two_or_more(program: Program, model: nn.Module, example: dict[str, Tensor]) -> None:
    assert program.ranges["batch"] == (2, None)
    with pytest.raises(InputError, match="batch = 1; 2 to any are taken: the model does something else at 1"):
        program(**{key: value[:1] for key, value in example.items()})
    two = {key: value[:1].repeat_interleave(2, 0) for key, value in example.items()}
    torch.testing.assert_close(program(**two), model(**two), atol=1e-5, rtol=1e-5)


def check_takes_the_one_row(program: Program, model: nn.Module, example: dict[str, Tensor]) -> None:
    """It is what was given, and what is wanted."""
    assert {spec.shape[0] for spec in program.inputs} == {1}
    (note,) = program.notes["capture"]
    assert note.startswith("dim 0 of ")
    assert "is fixed at 1, the example's: the model does something else at 1" in note
    torch.testing.assert_close(program(**example), model(**example), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_padding_of_one_row_is_tried_though_the_example_has_none(name: str, rows: int) -> None:
    apply, other = CASES[name]
    example = {"ids": IDS[:rows]} | ({} if other is None else {"other": other[:rows]})
    torch.manual_seed(0)
    model = Alone(apply).eval()
    program = capture(model, example)
    if rows == 1:
        check_takes_the_one_row(program, model, example)
    else:
        check_takes_two_or_more(program, model, example)


@pytest.mark.parametrize("name", CASES)
def test_a_model_that_treats_all_batches_alike_takes_one_row(name: str) -> None:
    apply, other = CASES[name]
    torch.manual_seed(0)
    program = capture(Alone(apply, rows=0).eval(), {"ids": IDS} | ({} if other is None else {"other": other}))
    assert program.ranges.get("batch", (1, None)) == (1, None)
    assert not program.least


class Apart(nn.Module):
    """``one`` is made of a row alone, and ``more`` of several; both get the same linear layer's result."""

    def __init__(self, one: Callable[..., Any], more: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.more, self.linear = one, more, nn.Linear(8, 8)

    def forward(self, x: Tensor, other: Tensor) -> Any:
        return (self.one if x.shape[0] == 1 else self.more)(self.linear(x), other)


X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
APART: dict[str, tuple[Callable[..., Any], Callable[..., Any], Tensor]] = {
    "lengths": (
        lambda h, o: h[:, -1] + 0 * o[:, None],
        lambda h, o: h[torch.arange(h.shape[0]), o - 1],
        torch.tensor([6, 6]),
    ),
    "a column": (lambda h, o: h[:, 0] + 0 * o, lambda h, o: h.mean(1) * o, torch.ones(2, 1)),
    "times": (
        lambda h, o: h + 0 * o[:, None, None],
        lambda h, o: h * (1 + o.sin()[:, None, None]),
        torch.zeros(2),
    ),
    "a mask that pools": (
        lambda h, o: h.mean(1) + 0 * o[:, 0],
        lambda h, o: (h * o).sum(1) / o.sum(1).clamp(min=1),
        torch.ones(2, 6, 1).bool(),
    ),
    "ids that pool": (
        lambda h, o: h.mean(1) + 0 * o[:, :1],
        lambda h, o: (h * (o != 19)[..., None]).sum(1) / (o != 19).sum(1, keepdim=True).clamp(min=1),
        IDS[:, :6] % 19,
    ),
    "another nest": (
        lambda h, o: {"y": h, "one": h[0]},
        lambda h, o: {"y": h + 0 * o[:, None]},
        torch.ones(2, 1),
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_else_tells_rows_is_tried_too(name: str) -> None:
    one, more, other = APART[name]
    model, example = Apart(one, more).eval(), {"x": X, "other": other}
    check_takes_two_or_more(
        capture(model, example, {"x": {0: "batch"}, "other": {0: "batch"}}), model, example
    )


class Squeezing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1)).squeeze()


def test_calibration_of_many_rows_says_what_is_wanted() -> None:
    model, many = Squeezing().eval(), torch.randn(4, 5, 8)
    fast = tersor.optimize_model(
        model, passes=[], target="torch", example_inputs={"x": many[:1]}, calibration={"x": many}
    )
    torch.testing.assert_close(fast(x=many), model(many))
    with pytest.raises(InputError, match="batch = 1; 2 to any are taken"):
        fast(x=many[:1])


def test_where_a_row_alone_loses_a_dim_it_is_left_out() -> None:
    model = Squeezing().eval()
    program = capture(model, X)
    assert program.ranges["batch"] == (2, None)
    torch.testing.assert_close(program(X), model(X))
    check_takes_the_one_row(capture(model, X[:1]), model, {"x": X[:1]})
    assert capture(model, X[:1], {"x": {0: "batch"}}).ranges["batch"] == (2, None)


def test_a_squeeze_beside_a_mask_is_captured() -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.table, self.layers, self.head = (
                nn.Embedding(64, 16),
                nn.TransformerEncoder(layer, 1),
                nn.Linear(16, 1),
            )

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.layers(self.table(ids), src_key_padding_mask=mask == 0)[:, 0]).squeeze()

    model, example = Regression().eval(), {"ids": IDS, "mask": torch.ones(2, 7).long()}
    torch.testing.assert_close(capture(model, example)(**example), model(**example), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        torch.polar(torch.ones(2, 7), torch.randn(2, 7)),
        torch.tensor([1 + 1j, 2 + 0j]),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_what_is_no_plain_number_is_not_tried(other: Tensor) -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return x * (other.real if other.dim() == 1 else other.real.mean(1))[:, None, None]

    model, example = Turned(), {"x": X, "other": other}
    torch.testing.assert_close(capture(model, example)(**example), model(**example))


class Refusing(nn.Module):
    """Rejects a single row, or the same row twice, in its own way."""

    def __init__(self, refused: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.refused = refused

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and self.refused(x):
            raise KeyError("not so")
        return x * 2 if x.shape[0] > 1 else x * 3


def test_a_model_that_rejects_a_row_in_its_own_way_is_captured_without_it() -> None:
    model = Refusing(lambda x: x.shape[0] == 1).eval()
    assert torch.equal(capture(model, X)(X), model(X))


def test_where_two_such_rows_are_rejected_one_that_differs_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"on inputs x \[1, 13, 8\]"):
        capture(Refusing(lambda x: x.shape[0] == 2 and torch.equal(x[0], x[1])).eval(), X)
