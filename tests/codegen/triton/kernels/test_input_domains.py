"""The Triton target refuses the numbers that other targets refuse: its gathers would read past their tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tersor.codegen.triton import TritonExecutable
from tersor.ir.errors import InputError
from tersor.ir.program import Program

from .test_programs import text


def example(program: Program) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in program.example_inputs.items()}


def test_ids_without_a_row_and_masks_past_their_proof_are_refused(tmp_path: Path) -> None:
    program = replace(text(), domains={"attention_mask": (None, 1)})
    built = TritonExecutable(program)
    built.save(tmp_path)
    for executable in (built, TritonExecutable.load(tmp_path)):
        got, want = executable.run(example(program))[0], program.run(example(program))[0]
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
        for name, number in (("input_ids", 100), ("input_ids", -1), ("attention_mask", 2)):
            wrong = example(program)
            wrong[name][0, 1] = number
            with pytest.raises(InputError, match=rf"'{name}' is {number} at \[0, 1\]"):
                executable.run(wrong)
