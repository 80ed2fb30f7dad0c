"""Operators that torch writes in others: written out where rules know those, left alone where they do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.analyses.token_rules import find_rule
from tersor.ir.capture import capture
from tersor.ir.program import Program

F = nn.functional
Function = Callable[[Tensor], Tensor]


class Called(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x))


def captured(function: Function) -> Program:
    module = Called(function).eval()
    program = capture(module, torch.randn(2, 7, 16))
    other = torch.randn(3, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(program(other), module(other), atol=0, rtol=0)
    return program


KNOWN: dict[str, Function] = {
    "movedim": lambda x: x.movedim(1, 2).movedim(2, 1),
    "swapaxes": lambda x: x.swapaxes(1, 2).swapdims(1, 2),
    "mT": lambda x: x.mT.adjoint(),
    "concat": lambda x: torch.concat([x, x.relu()], -1),
    "dstack": lambda x: torch.dstack([x, x.relu()]),
    "tile": lambda x: x.tile(1, 1, 2),
    "expand_as": lambda x: x[:, :, :1].expand_as(x) + x,
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :, :1], x.shape) + x,
    "view_as": lambda x: x.unflatten(-1, (4, 4)).view_as(x),
    "narrow": lambda x: torch.cat([x.narrow(-1, 8, 8), x.narrow(-1, -16, 8)], -1),
    "dsplit": lambda x: torch.cat(torch.dsplit(x, 2)[::-1], -1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "norm": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True),
    "other names": lambda x: torch.multiply(torch.subtract(x, torch.absolute(x)), torch.special.expit(x)),
    "greater": lambda x: torch.where(torch.greater(x, 0), x, torch.divide(x, 2.0)),
    "diff": lambda x: x.diff(dim=-1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_written_in_operators_that_have_rules(name: str) -> None:
    program = captured(KNOWN[name])
    assert all(find_rule(node) is not None for node in calls_of(program))


UNKNOWN: dict[str, tuple[Function, torch._ops.OpOverloadPacket]] = {
    "conv1d": (
        lambda x: F.conv1d(x.transpose(1, 2), torch.ones(16, 16, 3), padding=1),
        torch.ops.aten.conv1d,
    ),
    "pad": (lambda x: F.pad(x, (1, 1)), torch.ops.aten.pad),
    "group_norm": (
        lambda x: F.group_norm(x.reshape(-1, 16), 4).view(x.shape),
        torch.ops.aten.group_norm,
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_it_stays_where_its_parts_are_unknown_too(name: str) -> None:
    function, packet = UNKNOWN[name]
    program = captured(function)
    assert packet in [getattr(node.target, "overloadpacket", None) for node in program.graph.nodes]
    assert all(node.users for node in calls_of(program))


def calls_of(program: Program) -> list[torch.fx.Node]:
    values = ((node, node.meta.get("val")) for node in program.graph.nodes if node.op == "call_function")
    return [node for node, value in values if isinstance(value, Tensor | tuple | list)]
