"""Rounding passes, anything more does not; where rounding decides which token stays, the Program itself is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from tersor import LoweringError, Program, capture
from tersor.agreement import check_agreement
from tersor.codegen.target import Executable

Change = Callable[[Tensor], Tensor]


class Altered(Executable):
    """The Program with its outputs changed."""

    def __init__(self, program: Program, change: Change) -> None:
        self.program, self.change = program, change

    @property
    def inputs(self) -> Any:
        return self.program.inputs

    @property
    def outputs(self) -> Any:
        return self.program.outputs

    @property
    def domains(self) -> Any:
        return ()

    def compute(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.change(output) for output in self.program.run(inputs))

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        raise NotImplementedError


class Largest(torch.nn.Module):
    """The row with the largest score; all scores are equal but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Linear(8, 1, bias=False)
        torch.nn.init.ones_(self.score.weight)
        self.rows = torch.nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.stack([self.score(x).squeeze(-1), self.score(x.flip(-1)).squeeze(-1)], dim=-1)
        return torch.nn.functional.embedding(scores.argmax(-1), self.rows)


@pytest.mark.parametrize("change", [lambda t: t, lambda t: t * (1 + 1e-6)])
def test_rounding_passes(program: Program, change: Change) -> None:
    deviation = check_agreement(Altered(program, change), program, [program.example_inputs], "test")
    assert deviation.overall < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: 1.01 * t, "differs by"),
        (lambda t: t + 0.01, "differs by"),
        (lambda t: t.flip(1), "differs by"),
        (lambda t: t * torch.nan, "not finite"),
        (lambda t: t[:, :-1], "missing or has another shape"),
    ],
)
def test_what_no_rounding_explains_does_not_pass(program: Program, change: Change, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        check_agreement(Altered(program, change), program, [program.example_inputs], "test")


def test_a_choice_between_equals_may_fall_differently_but_must_be_a_choice() -> None:
    program = capture(Largest(), torch.randn(4, 8))
    ties = {"x": torch.randn(64, 8)}
    first, second = program.weights["rows"]
    other = lambda t: torch.where((t == first).all(-1, keepdim=True), second, first)  # noqa: E731
    check_agreement(Altered(program, _some_rows(other)), program, [ties], "test")
    with pytest.raises(LoweringError):
        check_agreement(Altered(program, lambda t: t + 3 * first), program, [ties], "test")


def _some_rows(change: Change) -> Change:
    return lambda t: torch.cat([change(t[:4]), t[4:]])


class Cancels(torch.nn.Module):
    """Moved far by rounding, though it chooses nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus = torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])
        return (x * self.plus - x * self.minus) * 1e8 + x * positions


class CancelsAndChooses(Cancels):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.0 * (x * self.plus).argmax(-1, keepdim=True)


def test_only_a_program_that_chooses_may_be_as_far_off_as_rounding_moves_it() -> None:
    def half_as_much_again(output: Tensor) -> Tensor:
        return 1.5 * output

    program = capture(Cancels(), torch.randn(4, 8))
    with pytest.raises(LoweringError, match="differs by"):
        check_agreement(Altered(program, half_as_much_again), program, [program.example_inputs], "test")
    program = capture(CancelsAndChooses(), torch.randn(4, 8))
    check_agreement(Altered(program, half_as_much_again), program, [program.example_inputs], "test")


class Responds(torch.nn.Module):
    """Chooses, and is moved by some hundredths of ``shift`` where its weights are rounded."""

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        self.plus, self.minus = torch.nn.Parameter(torch.ones(8)), torch.nn.Parameter(torch.ones(8))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        chosen = 0.0 * (x * self.plus).argmax(-1, keepdim=True)
        return (x * self.plus - x * self.minus) * 1e5 + x * self.shift + chosen


def test_a_program_that_chooses_is_moved_by_rounding_and_no_more() -> None:
    program = capture(Responds(), torch.randn(4, 8))
    check_agreement(Altered(program, lambda t: 1.01 * t), program, [program.example_inputs], "test")
    with pytest.raises(LoweringError, match="differs by"):
        check_agreement(Altered(program, lambda t: 1.5 * t), program, [program.example_inputs], "test")


@pytest.mark.parametrize(
    ("shift", "change", "message"),
    [
        (1.0, lambda t: t[:, :-1], "missing or has another shape"),
        # Of nothing, every difference is infinitely much.
        (0.0, lambda t: t * torch.nan, "not finite"),
        (0.0, lambda t: t + torch.inf, "not finite"),
    ],
)
def test_no_choice_explains_an_output_that_is_not_there(shift: float, change: Change, message: str) -> None:
    program = capture(Responds(shift=shift), torch.randn(4, 8))
    with pytest.raises(LoweringError, match=message):
        check_agreement(Altered(program, change), program, [program.example_inputs], "test")


class Tied(torch.nn.Module):
    """The row whose score is larger, of two scores that are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Parameter(torch.eye(2, 8))
        self.scores = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.embedding((x * self.scores).argmax(-1), self.rows)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_whichever_of_two_equals_rounding_favours(sign: float) -> None:
    """One move of the weights leaves the first in front for one sign, and the second for the other."""
    program = capture(Tied(), torch.ones(4, 2))
    inputs = {"x": sign * torch.arange(1.0, 9.0)[:, None].expand(8, 2)}
    check_agreement(Altered(program, _some_rows(lambda t: t.roll(1, -1))), program, [inputs], "test")


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(8))
def test_a_lone_tie_may_always_fall_the_other_way(sign: float, seed: int) -> None:
    """The Program's own choice is one side: a move of its weights that favours it too shows nothing."""
    model = Tied()
    noise = torch.Generator().manual_seed(seed)
    model.rows.data = torch.randn(2, 8 + seed, generator=noise)
    program = capture(model, torch.ones(4, 2))
    first, second = program.weights["rows"]
    other = lambda t: torch.where((t == first).all(-1, keepdim=True), second, first)  # noqa: E731
    check_agreement(Altered(program, other), program, [{"x": sign * torch.ones(1, 2)}], "test")


@pytest.mark.parametrize(("part", "passes"), [(0.0, True), (0.1, True), (1.0, False)])
def test_of_an_output_of_zeros_not_every_difference_is_a_choice(part: float, passes: bool) -> None:
    program = capture(Responds(shift=0.0), torch.randn(4, 8))
    altered = Altered(program, lambda t: t + part)
    assert not any(output.any() for output in program.run(program.example_inputs))
    if passes:
        check_agreement(altered, program, [program.example_inputs], "test")
    else:
        with pytest.raises(LoweringError, match="differs by"):
            check_agreement(altered, program, [program.example_inputs], "test")
