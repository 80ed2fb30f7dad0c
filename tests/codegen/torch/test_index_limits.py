"""Ids that an embedding has no row for are refused by the input's name, by every target and by what it saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tersor.codegen.index_limits import index_limits
from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program


class TwoTables(nn.Module):
    """``ids`` number rows of two tables, ``kinds`` of one, and of ``shifted`` only sums do."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small, self.kind = nn.Embedding(9, 4), nn.Embedding(7, 4), nn.Embedding(2, 4)

    def forward(self, ids: Tensor, kinds: Tensor, shifted: Tensor) -> Tensor:
        kind = self.kind(kinds.to(torch.int64).unflatten(1, (-1, 1))).squeeze(-2)
        return self.large(ids) + self.small(ids) + kind + self.large(shifted + 3)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(TwoTables().eval(), inputs(2, 5))


def inputs(batch: int, tokens: int) -> dict[str, Tensor]:
    return {
        "ids": torch.randint(7, (batch, tokens)),
        "kinds": torch.randint(2, (batch, tokens), dtype=torch.int32),
        "shifted": torch.randint(-3, 6, (batch, tokens)),
    }


def test_limits_are_read_off_the_graph(program: Program) -> None:
    assert index_limits(program) == {"ids": 7, "kinds": 2}


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_an_id_without_a_row_is_refused_by_the_inputs_name(
    program: Program, tmp_path: Path, target: str
) -> None:
    built = find_target(target).lower(program)
    built.save(tmp_path)
    for executable in (built, find_target(target).executable.load(tmp_path)):
        for batch, tokens in ((1, 3), (3, 8)):
            right = inputs(batch, tokens)
            torch.testing.assert_close(executable.run(right), program.run(right))
        for name, wrong, last in (("ids", 7, 6), ("ids", -1, 6), ("kinds", 2, 1), ("kinds", -2, 1)):
            changed = {key: value.clone() for key, value in right.items()}
            changed[name][1, 4] = wrong
            with pytest.raises(InputError, match=rf"'{name}' is {wrong} at \[1, 4\]; .* 0 to {last}"):
                executable.run(changed)
