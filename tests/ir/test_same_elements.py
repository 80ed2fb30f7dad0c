"""Copies and moves lead back to the value whose elements they hold, in every overload; nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from tersor.ir.same_elements import COPIES, MOVES, origin

aten = torch.ops.aten

CALLS = {
    aten.to.dtype: (torch.int32,),
    aten.to.other: (torch.zeros(1, dtype=torch.float64),),
    aten._to_copy.default: (),
    aten.type_as.default: (torch.zeros(1),),
    aten.clone.default: (),
    aten.contiguous.default: (),
    aten.detach.default: (),
    aten.alias.default: (),
    aten.lift_fresh.default: (),
    aten.lift_fresh_copy.default: (),
    aten.view.default: ([6, 1],),
    aten.reshape.default: ([3, 2, 1],),
    aten._unsafe_view.default: ([6],),
    aten.flatten.using_ints: (0, 1),
    aten.unflatten.int: (1, [3, 1]),
    aten.unsqueeze.default: (1,),
    aten.squeeze.default: (),
    aten.squeeze.dim: (2,),
    aten.squeeze.dims: ([2],),
    aten.expand.default: ([4, 2, 3, 1],),
    aten.transpose.int: (0, 1),
    aten.permute.default: ([2, 0, 1],),
}


@pytest.mark.parametrize("target", CALLS, ids=str)
def test_elements_are_those_of_the_origin(target):
    x = torch.tensor([5.0, 7.0, 11.0, 13.0, 17.0, 19.0]).reshape(2, 3, 1)
    assert set(target(x, *CALLS[target]).flatten().tolist()) == set(x.flatten().tolist())
    graph = fx.Graph()
    source = graph.placeholder("x")
    doubled = graph.call_function(aten.add.Tensor, (source, source))
    node = graph.call_function(
        target, (doubled, *(a for a in CALLS[target] if not isinstance(a, torch.Tensor)))
    )
    assert origin(graph.call_function(aten.clone.default, (node,))) is doubled
    assert origin(source) is source


def test_every_operator_listed_is_tried():
    assert {target.overloadpacket for target in CALLS} == {*COPIES, *MOVES} - {aten.t}
