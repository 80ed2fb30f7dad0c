"""How far a lowered Program is from the Program itself, to the last element."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tersor.codegen.target import Executable
from tersor.ir.program import Program


def difference(program: Program, executable: Executable, inputs: Mapping[str, Tensor]) -> float:
    """The largest absolute difference on ``inputs`` over all float outputs; everything else must be the same."""
    largest = 0.0
    for expected, actual in zip(program.run(inputs), executable.run(inputs), strict=True):
        assert (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
        if not expected.dtype.is_floating_point:
            assert torch.equal(expected, actual)
            continue
        finite = torch.isfinite(expected)
        assert torch.equal(finite, torch.isfinite(actual))
        assert torch.equal(expected[~finite].nan_to_num(), actual[~finite].nan_to_num())
        if finite.any():
            largest = max(largest, float((expected[finite].double() - actual[finite].double()).abs().max()))
    return largest
