"""What text a Program that steps takes: how many tokens, and up to which id."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tersor.ir.analyses.position_rows import most_positions
from tersor.ir.errors import InputError
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


def check_ids(tokens: Iterable[int], largest: int, holder: str) -> None:
    """Raise InputError, which names the ``holder``, where one of ``tokens`` is below 0 or above ``largest``."""
    wrong = next((token for token in tokens if not 0 <= token <= largest), None)
    if wrong is not None:
        raise InputError(
            f"{holder} holds the token id {wrong}; the model takes 0 to {largest}: give ids of the tokenizer "
            "that belongs to it"
        )


def _ids(program: Program) -> TensorSpec:
    assert program.stepping is not None
    name = program.stepping.ids
    return next(spec for spec in program.inputs if spec.name == name)
