"""Which masks are proven to hide nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.analyses.hiding import hides_nothing

CASES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "log of at least one": (lambda size: size.clamp(1.0).log().unsqueeze(1), True),
    "its sum": (lambda size: size.clamp(1).log() + size.clamp(2).log(), True),
    "some of it": (lambda size: size.clamp(1).log()[:, 1:4], True),
    "gathered": (
        lambda size: torch.ops.tersor.gather_tokens(size.clamp(1).log(), size.argsort(1)[:, :3], 1),
        True,
    ),
    "a small bound": (lambda size: size.clamp(1e-9).log(), False),
    "no bound": (lambda size: size.log(), False),
    "bounded above": (lambda size: size.clamp(max=1.0).log(), False),
    "as bool, where the log of one hides": (lambda size: size.clamp(1.0).log().bool(), False),
    "half of a sum": (lambda size: size.clamp(1).log() + size.log(), False),
    "a weighted sum": (lambda size: torch.add(size.clamp(1).log(), size.clamp(1).log(), alpha=-2), False),
}


class Masked(nn.Module):
    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, size: Tensor) -> Tensor:
        return self.mask(size)


@pytest.mark.parametrize("name", CASES)
def test_a_mask_hides_nothing_where_the_graph_shows_a_bound(name: str) -> None:
    mask, expected = CASES[name]
    program = tersor.capture(Masked(mask), {"size": torch.rand(2, 6) * 3})
    assert hides_nothing(program.output_node.args[0][0]) is expected  # type: ignore[index,arg-type]
