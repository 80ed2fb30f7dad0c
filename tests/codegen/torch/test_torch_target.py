"""The torch target is the Program itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tersor.codegen.torch import TorchTarget
from tersor.ir.capture import capture
from tersor.passes.pipeline import run


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_computes_what_the_program_computes(tiny_vit: nn.Module, compiled: bool) -> None:
    program = capture(tiny_vit, {"pixel_values": torch.randn(2, 3, 32, 32)})
    executable = TorchTarget().lower(program, compile=compiled)
    for batch in (1, 3):
        inputs = {"pixel_values": torch.randn(batch, 3, 32, 32)}
        for want, have in zip(program.run(inputs), executable.run(inputs), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4 if compiled else 0, atol=1e-5 if compiled else 0)


@pytest.mark.slow
def test_compiling_keeps_the_choice_of_tokens(tiny_bert: nn.Module) -> None:
    ids = torch.randint(0, 100, (2, 12))
    program = capture(tiny_bert, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    dropped, _ = run(program, ["token-drop:method=norm,keep=0.6,layers=1"])
    executable = TorchTarget().lower(dropped, compile=True)
    for tokens in (12, 9):
        mask = torch.ones(2, tokens, dtype=torch.int64)
        mask[0, -3:] = 0
        inputs = {"input_ids": torch.randint(0, 100, (2, tokens)), "attention_mask": mask}
        for want, have in zip(dropped.run(inputs), executable.run(inputs), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)
