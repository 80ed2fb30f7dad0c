"""An output is as exact as the coarsest dtype that its content was computed in, whatever dtype it is returned in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.analyses.rounding import ROUNDING, coarsest_dtypes, rounding_allowances
from tersor.ir.capture import capture

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


class Reads(nn.Module):
    """Weights of two dtypes, read as told."""

    def __init__(self, read: Callable[[Reads, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.f16 = nn.Linear(8, 8).half()
        self.b16 = nn.Linear(8, 8).bfloat16()
        self.f32 = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(32, 8).half())
        self.read = read

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.read(self, x, ids)


def _dtype(read: Callable[[Reads, Tensor, Tensor], Tensor]) -> torch.dtype:
    given = {"x": torch.randn(2, 6, 8), "ids": torch.randint(0, 8, (2, 6))}
    program = capture(Reads(read).eval(), given)
    (dtype,) = coarsest_dtypes(program).values()
    (allowance,) = rounding_allowances(program).values()
    assert allowance == ROUNDING.get(dtype, 0.0)
    return dtype


@pytest.mark.parametrize(
    ("read", "dtype"),
    [
        (lambda m, x, ids: m.f32(x), F32),
        (lambda m, x, ids: m.f16(x.half()), F16),
        (lambda m, x, ids: m.f16(x.half()).float(), F16),
        (lambda m, x, ids: m.f32(m.f16(x.half()).float()).exp(), F16),
        (lambda m, x, ids: m.f16(m.f32(x).half()).double(), F16),
        (lambda m, x, ids: m.b16(m.f16(x.half()).bfloat16()).float(), BF16),
        (lambda m, x, ids: torch.softmax(m.f32(x), -1, dtype=F64), F32),
        (lambda m, x, ids: x.double().exp(), F64),
        (lambda m, x, ids: torch.cat([m.f16(x.half()).float(), x], 1), F16),
        (lambda m, x, ids: m.f16(x.half()).max(-1)[0].float(), F16),
        (lambda m, x, ids: torch.fft.fft(m.f32(x)).real.double(), F32),
    ],
    ids=range(11),
)
def test_what_is_computed_in_a_coarse_dtype_stays_as_coarse(
    read: Callable[[Reads, Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    assert _dtype(read) is dtype


@pytest.mark.parametrize("read", [lambda m, x, ids: m.f32(x).half().float()], ids=["cast"])
def test_a_value_that_is_rounded_once_is_as_coarse(read: Callable[[Reads, Tensor, Tensor], Tensor]) -> None:
    """Two kernels that differ by little may round to neighbours."""
    assert _dtype(read) is F16


@pytest.mark.parametrize(
    "read",
    [
        lambda m, x, ids: m.f32(nn.functional.embedding(ids, m.table).float()),
        lambda m, x, ids: m.f32(m.table[ids].unsqueeze(1).reshape(2, 6, 8).float()),
        lambda m, x, ids: nn.functional.linear(x, m.f16.weight.float().t()),
        lambda m, x, ids: m.f32(x.half().float()),
    ],
    ids=["embedding", "index", "weight", "input"],
)
def test_what_is_held_in_a_coarse_dtype_and_not_computed_in_it_is_exact(
    read: Callable[[Reads, Tensor, Tensor], Tensor],
) -> None:
    assert _dtype(read) is F32


@pytest.mark.parametrize(
    "read",
    [
        lambda m, x, ids: torch.softmax(
            m.f32(x) + ((1 - (ids > 2).half()) * -65504.0).mean(1)[:, None, None], -1
        ),
        lambda m, x, ids: m.f32(x).masked_fill((m.f16(x.half()) > 0), 0.0),
        lambda m, x, ids: m.f32(x).index_select(1, m.f16(x.half()).mean((0, 2)).argmax()[None]),
        lambda m, x, ids: m.f32(x) + torch.zeros_like(m.f16(x.half())),
        lambda m, x, ids: nn.functional.scaled_dot_product_attention(
            m.f32(x)[:, None], x[:, None], x[:, None], attn_mask=m.f16(x.half())[:, None, :, :6].float().exp()
        ),
    ],
    ids=["mask of numbers", "comparison", "choice", "shape", "attention mask"],
)
def test_what_steers_leaves_the_content_as_exact(read: Callable[[Reads, Tensor, Tensor], Tensor]) -> None:
    assert _dtype(read) is F32


def test_whole_numbers_have_no_allowance() -> None:
    assert _dtype(lambda m, x, ids: m.f16(x.half()).argmax(-1)) is torch.int64


def test_every_output_has_its_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f16, self.f32 = nn.Linear(8, 8).half(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"coarse": self.f16(x.half()).float(), "fine": self.f32(x), "given": x.half()}

    program = capture(Two(), torch.randn(2, 6, 8))
    assert coarsest_dtypes(program) == {"coarse": F16, "fine": F32, "given": F16}
