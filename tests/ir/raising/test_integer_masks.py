"""Inputs of zeros and ones are padding only where a mask says so at every row and every number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program

HEADS, WIDTH, LENGTH = 2, 8, 12


class Masked(nn.Module):
    """Embedded ids through one projected attention under ``make(given)``."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make
        self.embed = nn.Embedding(9, WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, given: Tensor) -> Tensor:
        x = self.project(self.embed(ids)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.make(given)).transpose(1, 2).flatten(2)


def captured(make, given: Tensor) -> tuple[nn.Module, Program, torch.fx.Node]:
    torch.manual_seed(0)
    model = Masked(make).eval()
    program = capture(model, {"ids": torch.randint(0, 9, given.shape), "given": given})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    return model, program, node


def agree(model: nn.Module, program: Program, given: Tensor) -> None:
    ids = torch.randint(0, 9, given.shape)
    torch.testing.assert_close(program(ids, given), model(ids, given), atol=1e-6, rtol=1e-5)


def same(g: Tensor) -> Tensor:
    return (g[:, :, None] == g[:, None, :])[:, None]


def xor(g: Tensor) -> Tensor:
    return ~(g[:, :, None] ^ g[:, None, :])[:, None]


def difference(g: Tensor) -> Tensor:
    return (g[:, :, None] - g[:, None, :]).abs()[:, None] * -1e9


def products(g: Tensor) -> Tensor:
    other = 1 - g
    return (g[:, :, None] * g[:, None, :] + other[:, :, None] * other[:, None, :]).bool()[:, None]


def causal_and_same(g: Tensor) -> Tensor:
    place = torch.arange(g.shape[1])
    return same(g) & (place[:, None] >= place[None])


def no_lower(g: Tensor) -> Tensor:
    return (g[:, :, None] <= g[:, None, :])[:, None]


@pytest.mark.parametrize(
    "make", [same, xor, difference, products, causal_and_same, no_lower], ids=lambda v: v.__name__
)
def test_segments_of_zeros_and_ones_are_not_padding(make):
    halves = (torch.arange(LENGTH) >= LENGTH // 2).expand(2, LENGTH)
    given = halves.clone() if make is xor else halves.long()
    model, program, node = captured(make, given)
    assert node.args[3] is not None
    assert node.args[4] is None
    interleaved = (torch.arange(14) % 3 == 1).expand(3, 14).to(given.dtype)
    for segments in (given, interleaved):
        agree(model, program, segments)


def equals_one(g: Tensor) -> Tensor:
    return (g == 1)[:, None, None]


def equals_one_late(g: Tensor) -> Tensor:
    return g[:, None, None] == 1


def not_zero(g: Tensor) -> Tensor:
    return g.bool()[:, None, None]


def is_zero(g: Tensor) -> Tensor:
    return g[:, None, None] == 0


def positive(g: Tensor) -> Tensor:
    return g[:, None, None] > 0


def odd(g: Tensor) -> Tensor:
    return (g[:, None, None] % 2) == 1


def below_six(g: Tensor) -> Tensor:
    return (g[:, None, None] > 0) & (g[:, None, None] < 6)


SPECIAL = torch.tensor(50)


def all_but_one_of_a_table(g: Tensor) -> Tensor:
    return ((g != 0) & (g != SPECIAL))[:, None, None]


def all_but_a_float(g: Tensor) -> Tensor:
    late = g[:, None, None].float()
    return (late > 0) & (late != 50.0)


def raised_where_two(g: Tensor) -> Tensor:
    late = g[:, None, None]
    return torch.where(late == 2, 5.0, torch.where(late == 1, 0.0, -1e9))


@pytest.mark.parametrize(
    ("make", "padding"),
    [
        (equals_one, True),
        (equals_one_late, True),
        (not_zero, True),
        (is_zero, True),
        (positive, True),
        (odd, False),
        (below_six, False),
        (raised_where_two, False),
        (all_but_one_of_a_table, True),
        (all_but_a_float, False),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_mask_is_right_at_numbers_that_the_example_does_not_hold(make, padding):
    given = torch.ones(2, LENGTH, dtype=torch.long)
    given[1, 8:] = 0
    model, program, node = captured(make, given)
    assert (node.args[4] is not None) == padding
    for number in (2, 3, 6, -1, 50):
        other = given.clone()
        other[0, 3::4] = number
        other[1, 7] = number
        agree(model, program, other)


def test_code_that_makes_sense_of_zeros_and_ones_only_is_padding():
    given = torch.ones(2, LENGTH, dtype=torch.long)
    given[1, 8:] = 0
    model, program, node = captured(lambda g: (1.0 - g[:, None, None].float()) * -1e4, given)
    assert node.args[3] is None
    assert node.args[4] is not None
    agree(model, program, given)


def bert_like(g: Tensor) -> Tensor:
    return (1.0 - g[:, None, None].to(torch.float32)) * torch.finfo(torch.float32).min


def small_table(g: Tensor) -> Tensor:
    return torch.tensor([False, True, True, True])[g][:, None, None]


DOMAINS = [
    (bert_like, (None, 1)),
    (lambda g: (g[:, None, None] - 1).float() * 1e4, (None, 1)),
    (lambda g: g[:, None, None].float() * -1e4, (0, None)),
    (small_table, (None, 3)),
    (not_zero, None),
    (positive, None),
    (equals_one, None),
]


@pytest.mark.parametrize("length", [LENGTH, 400])
@pytest.mark.parametrize("dynamic", ["auto", {}], ids=["auto", "fixed"])
@pytest.mark.parametrize(("make", "domain"), DOMAINS)
def test_numbers_that_the_model_has_no_use_for_are_outside_of_the_domain(make, domain, dynamic, length):
    given = torch.ones(2, length, dtype=torch.long)
    given[0, :2] = given[1, 8:] = 0
    torch.manual_seed(0)
    model = Masked(make).eval()
    program = capture(model, {"ids": torch.randint(0, 9, given.shape), "given": given}, dynamic=dynamic)
    assert program.domains == ({} if domain is None else {"given": domain})
    low, high = domain or (None, None)
    for number in (-3, -1, 2, 3, 50):
        if (low is None or number >= low) and (high is None or number <= high):
            other = given.clone()
            other[0, 3::4] = number
            agree(model, program, other)


def test_masks_of_two_domains_leave_what_is_in_both():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = Masked(bert_like), Masked(lambda g: g[:, None, None].float() * -1e4)

        def forward(self, ids: Tensor, given: Tensor) -> Tensor:
            return self.low(ids, given) + self.high(ids, given)

    given = (torch.arange(LENGTH) < 8).long().expand(2, LENGTH)
    program = capture(Both().eval(), {"ids": torch.randint(0, 9, given.shape), "given": given})
    assert program.domains == {"given": (0, 1)}


def test_a_mask_of_numbers_between_zero_and_one_stays_as_the_model_has_it():
    given = torch.ones(2, LENGTH)
    given[1, 8:] = 0
    model, program, node = captured(bert_like, given)
    assert node.args[3] is not None
    assert not program.domains
    for number in (0.5, 2.0, -1.0):
        other = given.clone()
        other[0, 3] = number
        agree(model, program, other)
