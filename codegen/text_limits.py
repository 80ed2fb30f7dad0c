"""What text a Program that steps takes: how many tokens, and up to which id."""

from __future__ import annotations

import torch

from tersor.ir.analyses.position_rows import most_positions
from tersor.ir.program import Program, TensorSpec

from .input_domains import input_domains


def most_tokens(program: Program) -> int | None:
    """How many tokens a row may have; None where nothing bounds them."""
    assert program.stepping is not None
    taken = program.ranges.get(str(_ids(program).shape[1]), (0, None))[1]
    bounds = (taken, most_positions(program, program.stepping))
    return min((bound for bound in bounds if bound is not None), default=None)


def largest_id(program: Program) -> int:
    """The largest token id that it takes."""
    ids = _ids(program)
    bounds = [
        domain.high
        for domain in input_domains(program)
        if domain.input == ids.name and domain.high is not None
    ]
    return min([*bounds, torch.iinfo(ids.dtype).max])


def _ids(program: Program) -> TensorSpec:
    assert program.stepping is not None
    name = program.stepping.ids
    return next(spec for spec in program.inputs if spec.name == name)
