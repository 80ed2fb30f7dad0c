"""Tables that are sliced to the length of a text, and texts as long as the table, at which PyTorch takes it whole."""

from __future__ import annotations

from pathlib import Path

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
