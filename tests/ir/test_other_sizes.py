"""Shapes that were fixed to the example's sizes are found; shapes that only hold there are not made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.errors import VerifierError
from tersor.ir.other_sizes import verify_other_sizes
from tersor.ir.program import Program


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + 1.0)


def program() -> Program:
    return capture(Sums(), {"x": torch.randn(2, 5, 4)}, {"x": {0: "batch", 1: "tokens"}})


def test_a_program_as_captured_holds_at_other_sizes() -> None:
    verify_other_sizes(program())


def test_a_shape_that_was_fixed_is_named_with_its_node() -> None:
    edited = program().edit()
    node = next(node for node in edited.graph.nodes if "tanh" in str(node.target))
    value = node.meta["val"]
    with value.fake_mode:
        node.meta["val"] = value.new_empty(value.shape[0], 5, 4)
    with pytest.raises(VerifierError, match=r"tanh.*\[23, 32, 4\] at batch = 23, tokens = 32.*fixed"):
        verify_other_sizes(edited)


def test_sizes_stay_within_what_the_model_takes() -> None:
    bounded = program()
    bounded.ranges["tokens"] = (1, 6)
    verify_other_sizes(bounded)
