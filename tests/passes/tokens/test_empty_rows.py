"""A row of nothing but padding: no method fails on it, and the other rows stay what they are without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tersor.ir.program import Program
from tersor.passes import registry
from tersor.passes.tokens.method import TokenMethod

METHODS = sorted(registry.find_methods(TokenMethod))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("restore", ["scatter", "compact"])
def test_a_row_of_padding_changes_no_other_row(
    captured: Callable[[str], Program], dropped: Callable[[Program, str], Program], method: str, restore: str
) -> None:
    program = dropped(captured("bert"), f"token-drop:method={method},keep=0.6,layers=0,restore={restore}")
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1] = 0
    mask[2, 7:] = 0
    given = {"input_ids": torch.randint(3, 90, (3, 12), generator=generator), "attention_mask": mask}
    others = {name: value[[0, 2]] for name, value in given.items()}
    names = [spec.name for spec in program.outputs]
    got = dict(zip(names, program.run(given), strict=True))
    want = dict(zip(names, program.run(others), strict=True))
    real = mask[[0, 2]].bool()
    if restore == "compact":
        real = real.gather(1, want["kept_index"])
        assert torch.equal(got["kept_index"][[0, 2]][real], want["kept_index"][real])
    hidden = got["last_hidden_state"][[0, 2]]
    assert torch.allclose(hidden[real], want["last_hidden_state"][real], atol=1e-5)
    assert torch.allclose(got["pooler_output"][[0, 2]], want["pooler_output"], atol=1e-5)
