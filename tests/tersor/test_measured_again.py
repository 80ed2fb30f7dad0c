"""A deviation that is measured again may be no larger than the certified one in any of its measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tersor import Program
from tersor.passes.deviation import Deviation, Reference
from tersor.verification import Check, _compare


def _deviation(program: Program, change: float | Tensor = 0.1) -> Deviation:
    """That of outputs that are ``change`` away from the program's."""
    reference = Reference(program, [program.example_inputs])
    return reference.compare_outputs([{name: value + change for name, value in reference.outputs[0].items()}])


def _checked(program: Program, found: Deviation, recorded: Deviation) -> Check:
    return _compare("again", found, recorded, program)


def test_what_is_measured_again_alike_or_smaller_holds(program: Program) -> None:
    large, small = _deviation(program), _deviation(program, 0.01)
    assert _checked(program, large, large).ok
    assert _checked(program, small, large).ok


@pytest.mark.parametrize(
    ("measure", "name"), [("cosine_distance", "cosine distance"), ("relative_l2", "relative distance")]
)
def test_every_measure_is_held_alone(program: Program, measure: str, name: str) -> None:
    found = _deviation(program)
    claimed = [replace(output, **{measure: getattr(output, measure) / 2}) for output in found.outputs]
    check = _checked(program, found, replace(found, outputs=tuple(claimed)))
    assert not check.ok
    assert f"'last_hidden_state': {name}" in check.detail


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf, -torch.inf])
def test_an_output_that_is_not_finite_is_refuted(program: Program, spoiled: float) -> None:
    for change in (spoiled, torch.zeros(16).index_fill_(0, torch.tensor([3]), spoiled)):
        found = _deviation(program, change)
        assert not found.finite
        assert not _checked(program, found, _deviation(program)).ok


def test_an_output_that_cannot_be_compared_any_more_is_refuted(program: Program) -> None:
    recorded = _deviation(program)
    lost = Deviation((), recorded.samples, tuple(output.name for output in recorded.outputs))
    check = _checked(program, lost, recorded)
    assert not check.ok
    assert "last_hidden_state cannot be compared any more" in check.detail
    assert _checked(program, lost, lost).ok


def test_an_output_that_was_not_measured_is_refuted(program: Program) -> None:
    found = _deviation(program)
    check = _checked(program, found, replace(found, outputs=()))
    assert not check.ok
    assert "was not measured" in check.detail
