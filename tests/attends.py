"""Attention written by hand, which hides keys as a test says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tersor.ir.program import Program

CHANNELS = 16
Hide = Callable[[Tensor, Tensor], Tensor]


class Attends(nn.Module):
    """Two heads over ``memory``, or over the tokens themselves; ``read`` makes the output of the tokens."""

    def __init__(self, hide: Hide, read: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.hide, self.read = hide, read

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        heads = [
            part.view(part.shape[0], part.shape[1], 2, CHANNELS // 2).transpose(1, 2)
            for part in (self.query(x), self.key(memory), self.value(memory))
        ]
        scores = self.hide(heads[0] @ heads[1].transpose(-1, -2) * 0.3, mask)
        return self.read(x + (scores.softmax(-1) @ heads[2]).transpose(1, 2).reshape(x.shape))


def assert_is(program: Program, model: nn.Module, **inputs: Tensor) -> None:
    with torch.no_grad():
        want = model(**inputs)
    torch.testing.assert_close(program(**inputs), want, atol=1e-5, rtol=1e-4)
