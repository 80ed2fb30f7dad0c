"""Tokens that must stay are read off the graph, not off a name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.analyses.layers import layers
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.tokens.protect import Protection, find_protected


def protection(program: Program) -> Protection:
    return find_protected(program, layers(program))


@pytest.mark.parametrize(
    ("kind", "prefix", "last", "reason"),
    [
        ("vit", 1, 0, "constants of the model"),
        ("registers", 3, 0, "the first 3"),
        ("bert", 1, 1, "delimiters"),
        ("llama", 1, 1, "delimiters"),
    ],
)
def test_class_tokens_registers_and_delimiters_are_found(
    captured: Callable[[str], Program], kind: str, prefix: int, last: int, reason: str
) -> None:
    found = protection(captured(kind))
    assert (found.prefix, found.last) == (prefix, last)
    assert any(reason in text for text in found.reasons)


class Reads(nn.Module):
    """An encoder whose result is read as told."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.encoder(x))


@pytest.mark.parametrize(
    ("read", "prefix", "last"),
    [
        (lambda x: x, 0, 0),
        (lambda x: x.mean(1), 0, 0),
        (lambda x: x[:, 0], 1, 0),
        (lambda x: x[:, 1], 2, 0),
        (lambda x: x[:, -1], 0, 1),
        (lambda x: x[:, -2:], 0, 2),
        (lambda x: x[:, 1:].mean(1), 1, 0),
        (lambda x: x[:, :2].mean(1), 2, 0),
        (lambda x: x[:, :7], 0, 1),
        (lambda x: x[:, 0] + x[:, -1], 1, 1),
        (lambda x: x[:, :, 3], 0, 0),
    ],
)
def test_positions_that_the_head_reads_are_protected(
    read: Callable[[Tensor], Tensor], prefix: int, last: int
) -> None:
    program = capture(Reads(read).eval(), {"x": torch.randn(2, 8, 8)}, {"x": {0: "batch"}})
    found = protection(program)
    assert (found.prefix, found.last) == (prefix, last)


def test_constants_behind_the_input_are_protected_at_the_end() -> None:
    class Prompted(Reads):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.prompt = nn.Parameter(torch.randn(1, 3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, self.prompt.expand(x.shape[0], -1, -1)], dim=1))

    found = protection(capture(Prompted().eval(), {"x": torch.randn(2, 8, 8)}))
    assert (found.prefix, found.last) == (0, 3)
