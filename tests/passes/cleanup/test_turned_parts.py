"""Rotary positions of some of the tokens as ones of all: equal to the bit, and what they are not written for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.cleanup.turned_parts import TurnedParts
from tersor.passes.pipeline import run

HEADS, WIDTH = 2, 8


def halves(x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return torch.cat([-two, one], -1)


def pairs(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)


def with_slices(x: Tensor, first: int, last: int) -> list[Tensor]:
    tokens = x.shape[2]
    return [x[:, :, :first], x[:, :, first : tokens - last], x[:, :, tokens - last :]]


def with_split(x: Tensor, first: int, last: int) -> list[Tensor]:
    return list(x.split([first, x.shape[2] - first - last, last], 2))


class Turned(nn.Module):
    """``[batch, heads, tokens, width]``, of which the first few tokens and the last few stay."""

    def __init__(
        self,
        tokens: int,
        first: int = 2,
        last: int = 0,
        cut: Callable[[Tensor, int, int], list[Tensor]] = with_slices,
        turn: Callable[[Tensor], Tensor] = halves,
    ) -> None:
        super().__init__()
        self.first, self.last, self.cut, self.turn = first, last, cut, turn
        angles = torch.randn(tokens - first - last, WIDTH)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, part: Tensor) -> Tensor:
        return part * self.cos + self.turn(part) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        before, part, after = self.cut(x, self.first, self.last)
        parts = [before] * (self.first > 0) + [self.turned(part)] + [after] * (self.last > 0)
        return torch.cat(parts, 2)


def cleaned(model: nn.Module, x: Tensor, **options: Any) -> Program:
    """The Program cleaned, which computes what the model does to the bit."""
    program, _ = run(capture(model.eval(), {"x": x}, **options), [])
    assert torch.equal(program(x=x), model(x))
    return program


def test_before_and_after() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, HEADS, 7, WIDTH)
    model = Turned(7).eval()
    before = capture(model, {"x": x})
    assert [line.strip() for line in str(before).splitlines() if "dim=2" in line] == [
        "%slice_2 = slice(%slice_1) {dim=2, start=0, end=2} -> f32[batch, 2, 2, 8]",
        "%slice_4 = slice(%slice_3) {dim=2, start=2, end=7} -> f32[batch, 2, 5, 8]",
        "%cat_1 = cat([%slice_2, %add]) {dim=2} -> f32[batch, 2, 7, 8]",
    ]
    assert [line.strip() for line in str(cleaned(model, x)).splitlines()[2:]] == [
        "%chunk_default = chunk(%x) {chunks=2, dim=-1} -> (f32[batch, 2, 7, 4], f32[batch, 2, 7, 4])",
        "%getitem_2 = %chunk_default[1] -> f32[batch, 2, 7, 4]",
        "%neg_default = neg(%getitem_2) -> f32[batch, 2, 7, 4]",
        "%getitem_3 = %chunk_default[0] -> f32[batch, 2, 7, 4]",
        "%cat_default = cat([%neg_default, %getitem_3]) {dim=-1} -> f32[batch, 2, 7, 8]",
        "%mul_tensor = mul(%x, @folded.cat_default_1) -> f32[batch, 2, 7, 8]",
        "%mul_tensor_1 = mul(%cat_default, @folded.cat_default_2) -> f32[batch, 2, 7, 8]",
        "%add_tensor = add(%mul_tensor, %mul_tensor_1) -> f32[batch, 2, 7, 8]",
        "return %add_tensor",
    ]


@settings(max_examples=40, deadline=None)
@given(
    first=st.integers(0, 3),
    last=st.integers(0, 3),
    more=st.integers(0, 5),
    cut=st.sampled_from([with_slices, with_split]),
    turn=st.sampled_from([halves, pairs]),
)
def test_nothing_is_cut_or_joined_along_the_tokens(
    first: int, last: int, more: int, cut: Any, turn: Any
) -> None:
    tokens = 2 * (first + last) + 1 + more
    x = torch.randn(2, HEADS, tokens, WIDTH)
    x[0, 0, 0] = 0.0
    program = cleaned(Turned(tokens, first, last, cut, turn), x)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            assert value.shape[2] == tokens, node


def test_tokens_may_be_as_many_as_they_like() -> None:
    class Computed(Turned):
        def forward(self, x: Tensor) -> Tensor:
            angles = torch.arange(x.shape[2] - 2)[:, None] / torch.arange(1, WIDTH + 1)
            part = x[:, :, 2:]
            return torch.cat([x[:, :, :2], part * angles.cos() + halves(part) * angles.sin()], 2)

    model = Computed(9)
    program = cleaned(model, torch.randn(2, HEADS, 9, WIDTH), dynamic={"x": {0: "batch", 2: "tokens"}})
    longer = torch.randn(3, HEADS, 14, WIDTH)
    assert torch.equal(program(x=longer), model(longer))
    assert not TurnedParts().legality(program)


class Order(Turned):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.turned(x[:, :, 2:]), x[:, :, :2]], 2)


class Gap(Turned):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :, :1], self.turned(x[:, :, 2:])], 2)


class TwoSources(Turned):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x * 2)[:, :, :2], self.turned(x[:, :, 2:])], 2)


class Moved(Turned):
    """What the part is turned to is another token's."""

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :, 2:]
        return torch.cat([x[:, :, :2], part * self.cos + part.flip(2) * self.sin], 2)


class Unbound(Turned):
    """One head of the part is turned to by both."""

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :, 2:]
        return torch.cat([x[:, :, :2], part * self.cos + part.unbind(3)[1][..., None] * self.sin], 2)


class Dropped(Turned):
    """As many heads as tokens: a table of another rank would fit all the same."""

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, 1:]
        return torch.cat([x[:, :1], part * self.cos[:1] + part.unbind(2)[1] * self.sin[:1]], 1)


class ByRow(Turned):
    """The table is another for every row of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :, 2:]
        table = x.mean((1, 2, 3), keepdim=True) * self.cos[None, None]
        return torch.cat([x[:, :, :2], part * table + halves(part) * self.sin], 2)


@pytest.mark.parametrize("kind", [Order, Gap, TwoSources, Moved, Unbound, Dropped, ByRow])
def test_what_is_something_else_stays(kind: type[Turned]) -> None:
    program = cleaned(kind(7), torch.randn(2, HEADS, 7, WIDTH))
    assert any(
        node.target is torch.ops.aten.cat.default and len(node.args) > 1 and node.args[1] in (1, 2, -2)
        for node in program.graph.nodes
    )
