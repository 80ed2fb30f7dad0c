"""Every method runs in the precision of the model it is given."""

from __future__ import annotations

from functools import cache
from typing import get_type_hints

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.pipeline import run
from tersor.passes.registry import find_methods
from tersor.passes.spec import slot_of
from tersor.passes.tokens.drop import TokenDrop

SLOT = slot_of(get_type_hints(TokenDrop)["method"])
assert SLOT is not None
METHODS = sorted(find_methods(SLOT))
PRECISIONS = [torch.float16, torch.bfloat16, torch.float64]


class Encoder(nn.Module):
    """A class token ahead of 15 patches, with or without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 3, enable_nested_tensor=False
        )
        self.token = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        if padding is not None:
            padding = nn.functional.pad(padding, (1, 0))
        return self.encoder(x, src_key_padding_mask=padding)  # type: ignore[no-any-return]


@cache
def program(dtype: torch.dtype, padded: bool) -> Program:
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 15, 16, dtype=dtype)}
    if padded:
        example["padding"] = torch.zeros(2, 15, dtype=torch.bool)
        example["padding"][1, 9:] = True
    return capture(Encoder().to(dtype).eval(), example)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_the_models_precision(method: str, dtype: torch.dtype, padded: bool) -> None:
    source = program(dtype, padded)
    spec = f"token-drop:method={method},keep=0.6,layers=0+1,proportional=true"
    result, report = run(source, [spec])
    assert report.steps[1].verdict == "kept"
    (output,) = result.run(result.example_inputs)
    assert output.dtype == dtype
    assert output.isfinite().all()
