"""A window is seen whatever kind of constant states it, and none is read into code where no length would show it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect

HEADS, WIDTH = 2, 8


class Near(nn.Module):
    """One projected attention over ``x [batch, tokens, width]``, causal and where ``near(self, distance)`` says."""

    def __init__(self, near) -> None:
        super().__init__()
        self.near = near
        self.project = nn.Linear(WIDTH, WIDTH)
        self.span = nn.Buffer(torch.tensor(50))
        self.reach = nn.Parameter(torch.tensor(50.0))
        place = torch.arange(100)
        self.table = nn.Buffer(place[:, None] - place[None, :] < 70)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        distance = place[:, None] - place[None, :]
        mask = (distance >= 0) & self.near(self, distance)
        heads = self.project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("near", "window"),
    [
        (lambda m, d: d < m.span, 50),
        (lambda m, d: d < m.reach, 50),
        (lambda m, d: d * 0.02 < 1, 50),
        (lambda m, d: d * 0.02 < 1.5, 75),
        (lambda m, d: d.float() / 50 < 1, 50),
        (lambda m, d: -d > -50, 50),
        (lambda m, d: torch.log2(d.clamp(0).float() + 1) < 6, None),
        (lambda m, d: torch.exp(-0.1 * d) > 0.01, None),
        (lambda m, d: d < d.shape[0] // 2 + 8, None),
        (lambda m, d: d < d.shape[0] * 0.9, None),
        (lambda m, d: d < 1e7, None),
        (lambda m, d: d / d.shape[0] < 0.98, None),
        (lambda m, d: d < max(64, d.shape[0] // 16), None),
        (lambda m, d: d < max(64, d.shape[0] // 64 + 1), None),
        (lambda m, d: d < torch.maximum(torch.tensor(4), torch.tensor(d.shape[0] // 100)), None),
        (lambda m, d: d < 50 + d.shape[0] - d.shape[1], 50),
    ],
    ids=[
        "buffer",
        "parameter",
        "factor",
        "product",
        "quotient",
        "negative",
        "log",
        "exp",
        "half",
        "share",
        "far",
        "nearly all",
        "a share of many",
        "a share of very many",
        "a share as a tensor",
        "sizes that cancel",
    ],
)
def test_windows(near, window):
    torch.manual_seed(0)
    model = Near(near).eval()
    program = capture(model, {"x": torch.randn(2, 12, WIDTH)})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    if window is None:
        assert node.args[3] is not None
        assert (node.kwargs["causal"], node.kwargs["window"]) == (False, 0)
    else:
        assert node.args[3] is None
        assert (node.kwargs["causal"], node.kwargs["window"]) == (True, window)
    for length in (12, 60, 130, 1300):
        x = torch.randn(2, length, WIDTH)
        torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=1e-5)


def test_keys_ahead_that_show_late_are_seen() -> None:
    class Ahead(Near):
        def forward(self, x: Tensor) -> Tensor:
            place = torch.arange(x.shape[1])
            seen = place[:, None] - place[None, :] >= -max(0, x.shape[1] // 100 - 5)
            heads = self.project(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            return (
                F.scaled_dot_product_attention(heads, heads, heads, attn_mask=seen).transpose(1, 2).flatten(2)
            )

    model = Ahead(None).eval()
    program = capture(model, {"x": torch.randn(2, 12, WIDTH)})
    for length in (12, 400, 700):
        x = torch.randn(1, length, WIDTH)
        torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=1e-5)


def test_a_window_in_a_table_is_seen():
    torch.manual_seed(0)
    model = Near(lambda m, d: m.table[: d.shape[0], : d.shape[0]]).eval()
    program = capture(model, {"x": torch.randn(2, 12, WIDTH)})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    assert node.args[3] is not None or node.kwargs["window"] == 70
    for length in (12, 99):
        x = torch.randn(2, length, WIDTH)
        torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=1e-5)
