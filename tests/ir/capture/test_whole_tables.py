"""Tables that are sliced to the length of a text, and texts as long as the table, at which PyTorch takes it whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture
from tersor.ir.errors import InputError

LENGTH, WIDTH = 24, 16


class Decoder(nn.Module):
    """nanoGPT's attention by hand: a square of ones below the diagonal, cut to the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.packed, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 50)
        self.register_buffer("bias", torch.ones(LENGTH, LENGTH).tril().view(1, 1, LENGTH, LENGTH))

    def forward(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        assert length <= LENGTH
        x = self.tokens(ids) + self.places(torch.arange(length))
        q, k, v = (
            part.view(batch, length, 2, WIDTH // 2).transpose(1, 2) for part in self.packed(x).split(WIDTH, 2)
        )
        scores = q @ k.transpose(-2, -1) / (WIDTH // 2) ** 0.5
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(batch, length, WIDTH)
        return self.head(x + y)


class Otherwise(Decoder):
    """It does something else with a text as long as its table."""

    def forward(self, ids: Tensor) -> Tensor:
        result = super().forward(ids)
        return result * 2 if ids.shape[1] == LENGTH else result


class Static(nn.Module):
    """One position for each token, and no other length."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, LENGTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


def ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(0, 50, (rows, length))


@pytest.mark.parametrize("target", ["torch", "onnx"])
@pytest.mark.parametrize("passes", [[], ["kv-cache"]], ids=["plain", "cached"])
@pytest.mark.parametrize("given", [LENGTH // 2, LENGTH - 1, LENGTH])
def test_every_length_up_to_the_table_is_taken(
    given: int, passes: list[str], target: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Decoder().eval()
    fast = tersor.optimize_model(model, passes, target, example_inputs={"ids": ids(given)})
    fast.save(tmp_path / "out")
    for built in (fast, tersor.load(tmp_path / "out")):
        for length in (1, 2, LENGTH - 1, LENGTH):
            text = ids(length, 3)
            torch.testing.assert_close(built(text), model(text), atol=1e-5, rtol=1e-5)
        with pytest.raises(InputError, match=f"the model takes 1 to {LENGTH}"):
            built(ids(LENGTH + 1))


def test_what_differs_there_is_left_out() -> None:
    model = Otherwise().eval()
    short = capture(model, {"ids": ids(LENGTH // 2)})
    assert short.ranges["tokens"] == (1, LENGTH - 1)
    whole = capture(model, {"ids": ids(LENGTH)})
    assert whole.inputs[0].shape == ("batch", LENGTH)
    torch.testing.assert_close(whole(ids=(text := ids(LENGTH))), model(text), atol=1e-5, rtol=1e-5)


def test_the_cut_of_the_example_is_told() -> None:
    model = Decoder().eval()
    told = capture(model, {"ids": ids(LENGTH)}).notes["capture"]
    assert any("the example is cut by one in tokens" in note for note in told)
    assert "capture" not in capture(model, {"ids": ids(LENGTH - 1)}).notes


def test_a_size_that_the_model_fixes_stays_fixed() -> None:
    program = capture(Static().eval(), {"x": torch.randn(2, LENGTH, WIDTH)})
    assert program.inputs[0].shape[1] == LENGTH


class Masked(Decoder):
    """Without its mask where a text is as long as the table, or for the last steps of one."""

    def __init__(self, unmasked: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.unmasked = unmasked
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        scores = x @ x.transpose(1, 2)
        if not self.unmasked(*ids.shape):
            scores = scores + (1.0 - mask[:, None].float()) * -1e9
        return x + scores.softmax(-1) @ x


@pytest.mark.parametrize(
    "unmasked",
    [
        lambda rows, tokens: tokens == LENGTH,
        lambda rows, tokens: tokens == LENGTH and rows > 4,
        lambda rows, tokens: tokens == LENGTH and rows == 1,
    ],
    ids=["always", "of many rows", "of one row"],
)
@pytest.mark.parametrize("given", [7, LENGTH])
def test_what_a_model_hides_there_is_tried_too(unmasked: Callable[[int, int], bool], given: int) -> None:
    torch.manual_seed(0)
    model = Masked(unmasked).eval()
    example = {"ids": ids(given), "mask": torch.ones(2, given).long()}
    program = capture(model, example)
    if given == LENGTH and unmasked(1, LENGTH) and not unmasked(2, LENGTH):
        # All of it was traced for more rows.
        assert program.ranges["batch"] == (2, None)
    for rows in (1, 2, 6):
        mask = torch.ones(rows, LENGTH).long()
        mask[:, 10:] = 0
        text = ids(LENGTH, rows)
        try:
            found = program(ids=text, mask=mask)
        except InputError:
            continue
        torch.testing.assert_close(found[:, :10], model(text, mask)[:, :10], atol=1e-5, rtol=1e-5)


class Steps(nn.Module):
    """A text that reads a memory, without its mask for one token; and what is done to one token of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, WIDTH)

    def forward(self, ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids)
        scores = x @ memory.transpose(1, 2)
        if ids.shape[1] > 1:
            scores = scores.masked_fill(mask[:, None] == 0, -1e9)
        return x + scores.softmax(-1) @ memory


def test_a_step_of_one_token_without_a_mask_is_left_out() -> None:
    torch.manual_seed(0)
    model = Steps().eval()
    example = {"ids": ids(5), "memory": torch.randn(2, 6, WIDTH), "mask": torch.ones(2, 6).long()}
    program = capture(model, example)
    example["mask"][1, 2:] = 0
    with pytest.raises(InputError, match="2 to any"):
        program(**{**example, "ids": ids(1)})


class Doubled(Decoder):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * (2 if ids.numel() == 1 else 1)


def test_one_token_of_one_row_is_tried() -> None:
    program = capture(Doubled().eval(), {"ids": ids(7)})
    with pytest.raises(InputError, match="2 to"):
        program(ids=ids(1, 1))


class Sliced(nn.Module):
    """Causal by a table of numbers that are added."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, WIDTH)
        hidden = torch.ones(length, length).triu(1).bool()
        self.register_buffer("bias", torch.zeros(length, length).masked_fill(hidden, -torch.inf))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.tokens(ids)
        bias = self.bias[: ids.shape[1], : ids.shape[1]]
        if mask is not None:
            bias = bias.masked_fill(mask[:, None] == 0, -torch.inf)
        return x + (x @ x.transpose(1, 2) + bias).softmax(-1) @ x


def test_an_example_is_taken_whatever_is_tried() -> None:
    """Past the lengths that are tried, and where what is left of it shows nothing."""
    text = ids(1030, 1)
    model = Sliced(1030).eval()
    torch.testing.assert_close(capture(model, {"ids": text})(ids=text), model(text), atol=1e-5, rtol=1e-5)
    inputs = {"ids": ids(LENGTH), "mask": torch.ones(2, LENGTH).long()}
    inputs["mask"][1, :-1] = 0
    model = Sliced(LENGTH).eval()
    found, want = capture(model, inputs)(**inputs), model(**inputs)
    torch.testing.assert_close(found[0], want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1, -1], want[1, -1], atol=1e-5, rtol=1e-5)


class Nests(Decoder):
    """It returns something else, or fails in its own way, at a size."""

    def __init__(self, size: int, otherwise: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.size, self.otherwise = size, otherwise

    def forward(self, ids: Tensor) -> Any:
        result = super().forward(ids)
        return self.otherwise(result) if ids.shape[1] == self.size else result


def fails(result: Tensor) -> Tensor:
    raise KeyError("a size")


@pytest.mark.parametrize("size", [1, LENGTH])
@pytest.mark.parametrize(
    "otherwise", [lambda x: (x, x), lambda x: {"x": x}, fails], ids=["two", "named", "fails"]
)
def test_what_a_model_returns_otherwise_is_left_out(size: int, otherwise: Callable[[Tensor], Any]) -> None:
    program = capture(Nests(size, otherwise).eval(), {"ids": ids(7)})
    low, high = program.ranges["tokens"]
    assert high == (LENGTH - 1 if size == LENGTH else LENGTH)
    assert low == (2 if size == 1 and otherwise is not fails else 1)


class Counted(Masked):
    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids, ids != 0)


def test_ids_that_stand_for_padding_are_tried() -> None:
    model = Counted(lambda rows, tokens: tokens == LENGTH).eval()
    for given in (7, LENGTH):
        program = capture(model, {"ids": ids(given) % 49 + 1})
        text = ids(LENGTH) % 49 + 1
        text[:, 9:] = 0
        try:
            found = program(ids=text)
        except InputError:
            continue
        torch.testing.assert_close(found[:, :9], model(text)[:, :9], atol=1e-5, rtol=1e-5)


class Padded(Decoder):
    """A classifier that is told what is padding by the ids themselves, and does without that at its full length."""

    def __init__(self, padding: int, unmasked: bool = False) -> None:
        super().__init__()
        self.padding, self.unmasked = padding, unmasked
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places[: ids.shape[1]]
        scores = x @ x.transpose(1, 2)
        if not self.unmasked or ids.shape[1] < LENGTH:
            scores = scores + (ids == self.padding)[:, None].float() * -1e9
        return (scores.softmax(-1) @ x)[:, 0]


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("given", [1, 7, LENGTH])
def test_a_row_without_tokens_says_nothing_of_a_size(given: int, padding: int) -> None:
    program = capture(Padded(padding).eval(), {"ids": ids(given) % 40 + 4})
    assert program.ranges["tokens"] == (1, LENGTH)
    assert program.fillers == {"ids": ((padding,),)}


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("given", [7, LENGTH])
def test_what_a_mask_is_made_with_is_tried_for_padding(given: int, padding: int) -> None:
    model = Padded(padding, unmasked=True).eval()
    program = capture(model, {"ids": ids(given) % 40 + 4})
    if given == LENGTH:
        assert program.called_with[0].shape == ("batch", LENGTH)
        text = ids(LENGTH) % 40 + 4
        text[:, 9:] = padding
        torch.testing.assert_close(program(ids=text), model(text), atol=1e-5, rtol=1e-5)
    else:
        assert program.ranges["tokens"] == (1, LENGTH - 1)


class PaddedFeatures(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        there = x + self.places[: x.shape[1]]
        scores = there @ there.transpose(1, 2)
        if x.shape[1] < LENGTH:
            scores = scores + (x == 0).all(-1)[:, None].float() * -1e9
        return (scores.softmax(-1) @ there)[:, 0]


def test_features_of_nothing_are_tried_for_padding() -> None:
    program = capture(PaddedFeatures().eval(), {"x": torch.randn(2, 7, WIDTH)})
    assert program.ranges["tokens"] == (1, LENGTH - 1)


class LongTable(nn.Module):
    """One text of the table's length is something else."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, WIDTH), nn.Parameter(torch.randn(200, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        result = self.tokens(ids) + self.places[: ids.shape[1]]
        return result * 2 if ids.shape[1] == 200 and len(ids) == 1 else result


def test_one_row_is_tried_of_long_tables_too() -> None:
    program = capture(LongTable().eval(), {"ids": ids(7)})
    assert program.ranges["tokens"] == (1, 199)


class Segments(Decoder):
    """Segments count where there is more than one token."""

    def __init__(self) -> None:
        super().__init__()
        self.segments = nn.Embedding(2, WIDTH)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:  # type: ignore[override]
        x = self.tokens(ids)
        return x + self.segments(types) - self.segments.weight[0] if ids.shape[1] > 1 else x


def test_one_token_is_tried_with_other_numbers_in_every_input() -> None:
    program = capture(Segments().eval(), {"ids": ids(7), "types": torch.zeros(2, 7).long()})
    assert program.ranges["tokens"] == (2, None)


class Pooled(nn.Module):
    """Of one token nothing is left out; ids and features of zeros are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        if ids.shape[1] == 1:
            return self.head(values.squeeze(1))
        return self.head((values * (ids != 0)[..., None]).sum(1))


def test_inputs_are_changed_one_at_a_time() -> None:
    program = capture(Pooled().eval(), {"ids": ids(6) % 40 + 4, "values": torch.randn(2, 6, WIDTH)})
    assert program.ranges["tokens"] == (2, None)
