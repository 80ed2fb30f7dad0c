"""Which ids masks of finite numbers hide: every one that the table has is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finite_masks import WIDTH, attended
from torch import Tensor, nn

import tersor
from tersor.codegen.onnx.session import runtime
from tersor.ir.capture import capture, empty_rows
from tersor.ir.errors import InputError


class Special(nn.Module):
    """A range of ids is hidden."""

    def __init__(self, seen: Callable[[Tensor], Tensor], ids: int = 64) -> None:
        super().__init__()
        self.seen, self.table = seen, nn.Embedding(ids, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return attended(x, x, self.seen(ids), -1e9)[:, 0]


@pytest.mark.parametrize("row", [[2] * 6, [0, 1, 2, 3, 2, 1]])
def test_numbers_between_those_that_are_written_are_refused_too(row: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Special(lambda ids: ids >= 4).eval()
    fast = tersor.optimize_model(
        model, [], "onnx", example_inputs={"ids": torch.randint(4, 64, (2, 6))}, require_speedup=False
    )
    assert fast.program.fillers == {"ids": ((0, 1, 2, 3),)}
    ids = torch.randint(4, 64, (2, 6))
    ids[1, 1:] = 2
    torch.testing.assert_close(fast(ids=ids), model(ids), atol=1e-5, rtol=1e-5)
    ids[1] = torch.tensor(row)
    with pytest.raises(InputError, match=r"row \[1\] of input 'ids' holds nothing but 0 to 3 "):
        fast(ids=ids)
    fast.export_onnx(tmp_path / "model.onnx")
    session = runtime().InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="a row of ids without a token"):
        session.run(None, {"ids": ids.numpy()})


@pytest.mark.parametrize(
    ("seen", "hidden"),
    [
        (lambda ids: ids < 60, range(60, 64)),
        (lambda ids: ids >= 31, range(31)),
        (lambda ids: ids % 7 != 0, range(0, 64, 7)),
        (lambda ids: ((ids != 50) & (ids != 51) & (ids != 52)) & ((ids != 53) & (ids != 54)), range(50, 55)),
    ],
)
@pytest.mark.parametrize("tokens", [2, 6])
def test_every_id_of_the_table_is_asked_for(
    seen: Callable[[Tensor], Tensor], hidden: range, tokens: int
) -> None:
    torch.manual_seed(0)
    real = torch.tensor([n for n in range(64) if n not in hidden])
    program = capture(Special(seen).eval(), {"ids": real[torch.randint(len(real), (2, tokens))]})
    assert program.fillers == {"ids": (tuple(hidden),)}


READINGS: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "clamped": (lambda ids: ids.clamp(0, 63), "auto"),
    "shifted": (lambda ids: (ids - 1).abs(), "auto"),
    "fixed": (lambda ids: ids, {}),
    "named otherwise": (lambda ids: ids, {"ids": {0: "rows", 1: "tokens"}}),
    "of one batch": (lambda ids: ids, {"ids": {1: "tokens"}}),
}


class Read(Special):
    """Ids are made something of before they are looked up."""

    def __init__(self, seen: Callable[[Tensor], Tensor], read: Callable[[Tensor], Tensor]) -> None:
        super().__init__(seen)
        self.read = read

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(self.read(ids))
        return attended(x, x, self.seen(ids), -1e9)[:, 0]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    ("seen", "hidden"), [(lambda ids: ids >= 4, range(4)), (lambda ids: ids < 60, range(60, 64))]
)
def test_however_ids_are_read(seen: Callable[[Tensor], Tensor], hidden: range, reading: str) -> None:
    torch.manual_seed(0)
    read, dynamic = READINGS[reading]
    program = capture(Read(seen, read).eval(), {"ids": torch.randint(4, 60, (2, 6))}, dynamic=dynamic)
    assert program.fillers == {"ids": (tuple(hidden),)}


class Causal(Special):
    """Its masks are as large as the square of the text, and its table is large."""

    def forward(self, ids: Tensor) -> Tensor:
        x, tokens = self.table(ids), ids.shape[1]
        keep = self.seen(ids)[:, None, :] & torch.ones(tokens, tokens, dtype=torch.bool).tril()
        return (x @ x.transpose(1, 2)).masked_fill(~keep, -1e9).softmax(-1) @ x


def test_a_large_table_is_not_asked_with_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    whole = empty_rows.evaluate

    def watched(*given: Any) -> Any:
        values = whole(*given)
        largest.append(max(value.numel() for value in values.values()))
        return values

    monkeypatch.setattr(empty_rows, "evaluate", watched)
    capture(Causal(lambda ids: ids != 1, 50_000).eval(), {"ids": torch.randint(2, 50_000, (2, 200))})
    assert len(largest) < 64
    assert max(largest) <= 1 << 22


class TwoPaddings(nn.Module):
    """Layers that hide different ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + attended(x, x, (ids != 0) & (ids != 1) & (ids != 2), -1e9)
        return (x + attended(x, x, ids != 3, -1e9))[:, 0]


@pytest.mark.parametrize("tokens", [2, 6])
def test_rows_of_what_one_layer_hides_are_refused_and_no_others(tokens: int) -> None:
    torch.manual_seed(0)
    model = TwoPaddings().eval()
    program = capture(model, {"ids": torch.randint(4, 64, (2, tokens))})
    assert program.fillers == {"ids": ((0, 1, 2), (3,))}
    ids = torch.tensor([[0, 3, 1, 3, 2, 3]] * 2)
    torch.testing.assert_close(program(ids=ids), model(ids), atol=1e-5, rtol=1e-5)


def test_many_numbers_are_told_in_few_words() -> None:
    torch.manual_seed(0)
    model = Special(lambda ids: ids % 2 != 0, 5000).eval()
    ids = torch.randint(2500, (2, 6)) * 2 + 1
    fast = tersor.optimize_model(model, [], "torch", example_inputs={"ids": ids})
    ids[0] = 4
    with pytest.raises(
        InputError, match="holds nothing but 0 and 2 and 4 and 6 and 8 and 10 and 2494 more numbers"
    ):
        fast(ids=ids)
