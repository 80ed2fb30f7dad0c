"""Two sequences part where they first differ; rounding explains it only where the logits were as close as that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tersor.runtime.divergence import first_divergence


def logits(base: Sequence[float], noise: float = 0.0) -> Tensor:
    return torch.tensor(base, dtype=torch.float64) + noise * torch.tensor([1.0, -1.0, 1.0])


@pytest.mark.parametrize(("noise", "tie"), [(1e-3, True), (2e-4, False)])
def test_a_tie_is_a_margin_within_rounding(noise: float, tie: bool) -> None:
    asked: list[list[int]] = []

    def reference(tokens: Sequence[int]) -> Tensor:
        asked.append(list(tokens))
        return logits([1.0, 0.999, 0.0])

    def again(_: Sequence[int]) -> Tensor:
        return logits([1.0, 0.999, 0.0], noise)

    def wrong(_: Sequence[int]) -> Tensor:
        return logits([0.0, 5.0, 0.0])

    found = first_divergence([7], [2, 0, 2], [2, 1, 1], reference, again, wrong)
    assert found is not None
    assert asked == [[7, 2]]
    assert (found.place, found.tokens, found.is_tie) == (1, (0, 1), tie)
    assert found.margin == pytest.approx(1e-3, rel=1e-3)
    assert found.rounding == pytest.approx(noise, rel=1e-3)
    assert found.difference == pytest.approx(4.001)
    assert (": a tie" in str(found)) == tie


def test_runs_that_happen_to_agree_leave_the_last_bit() -> None:
    same: Callable[[Sequence[int]], Tensor] = lambda _: logits([1.0, 1.0 - 1e-7, 0.0])  # noqa: E731
    found = first_divergence([7], [0], [1], same, same, same)
    assert found is not None
    assert found.is_tie


def test_sequences_that_agree_do_not_part() -> None:
    nobody = torch.tensor
    assert first_divergence([1], [2, 3], [2, 3], nobody, nobody, nobody) is None


@pytest.mark.parametrize(("expected", "found"), [([2, 3], [2, 3, 4]), ([2, 3, 4], [2, 3]), ([2], [])])
def test_one_that_ends_before_the_other_parts_from_it(expected: list[int], found: list[int]) -> None:
    parted = first_divergence([1], expected, found, torch.tensor, torch.tensor, torch.tensor)
    assert parted is not None
    assert not parted.is_tie
    assert parted.place == min(len(expected), len(found))
    assert ("what is compared ends" in str(parted)) == (len(found) < len(expected))


def test_what_the_reference_does_not_prefer_itself_is_no_tie() -> None:
    found = first_divergence(
        [7], [2], [1], lambda _: logits([0.0, 7.0, 0.0]), lambda _: logits([0.0, 7.0, 0.0], 1e-6)
    )
    assert found is not None
    assert found.margin == pytest.approx(-7.0)
    assert not found.is_tie
