"""A sum that reads a few tokens by their place is refused, however it is written; one that reads most is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import RefusedError
from tersor.passes.pipeline import run

F = nn.functional
Read = Callable[[Tensor, Tensor], Tensor]


class Encoder(nn.Module):
    def __init__(self, read: Read) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.read, self.layers = read, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.read(self.layers(x, src_key_padding_mask=mask == 0), mask))


def dropped(read: Read) -> None:
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 7:] = mask[2, 4:] = 0
    program = capture(Encoder(read).eval(), {"x": torch.randn(3, 12, 16), "mask": mask})
    run(program, ["token-drop:method=norm,keep=0.5,layers=0"])


def last(mask: Tensor) -> Tensor:
    return mask * (mask.cumsum(1) == mask.sum(1, keepdim=True))


PICKS: dict[str, Read] = {
    "product": lambda h, mask: (h * last(mask)[..., None]).sum(1),
    "where": lambda h, mask: torch.where(last(mask)[..., None] > 0, h, 0.0).sum(1),
    "masked_fill": lambda h, mask: h.masked_fill(last(mask)[..., None] == 0, 0.0).amax(1),
    "matmul": lambda h, mask: (last(mask)[:, None].float() @ h)[:, 0],
    "matmul behind": lambda h, mask: (h.transpose(1, 2) @ last(mask)[..., None].float())[..., 0],
    "einsum": lambda h, mask: torch.einsum("bt,btc->bc", last(mask).float(), h),
    "a constant place": lambda h, mask: (h * F.one_hot(torch.tensor([3]), h.shape[1]).transpose(0, 1)).sum(1),
    "normed on the way": lambda h, mask: F.gelu(h * last(mask)[..., None]).mean(1),
}


@pytest.mark.parametrize("name", PICKS)
def test_a_few_tokens_that_are_picked_by_their_place(name: str) -> None:
    with pytest.raises(RefusedError, match=r"by their place|by position"):
        dropped(PICKS[name])


MOST: dict[str, Read] = {
    "all that are real": lambda h, mask: (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
    "all but padding, by matmul": lambda h, mask: (mask[:, None].float() @ h)[:, 0],
    "all but the first": lambda h, mask: (h * (mask * (mask.cumsum(1) > 1))[..., None]).sum(1),
    "more of the later ones": lambda h, mask: (h * (mask.cumsum(1) * mask)[..., None]).sum(1),
    "all": lambda h, mask: h.mean(1),
}


@pytest.mark.parametrize("name", MOST)
def test_a_sum_of_most_tokens(name: str) -> None:
    dropped(MOST[name])
