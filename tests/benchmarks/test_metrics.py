"""The numbers of docs/benchmarks.md, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.metrics import (
    cosines,
    first_hits,
    label_hits,
    margin,
    nearest,
    neighbour_agreement,
    ranks,
    reciprocal_ranks,
)


def angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_cosine_ignores_length_and_sees_angle() -> None:
    found = cosines(angles(0, 60, 180) * torch.tensor([[1.0], [5.0], [0.1]]), angles(0, 0, 0))
    np.testing.assert_allclose(found, [1, 0.5, -1], atol=1e-6)


def test_nearest_is_never_the_row_itself_and_ignores_length() -> None:
    rows = angles(0, 10, 50, 55) * torch.tensor([[1.0], [9.0], [1.0], [3.0]])
    assert nearest(rows).tolist() == [1, 0, 3, 2]


def test_agreement_is_one_for_any_scaling_and_falls_where_neighbours_change() -> None:
    reference = angles(0, 10, 50, 55)
    np.testing.assert_array_equal(neighbour_agreement(reference * 7, reference), [1, 1, 1, 1])
    np.testing.assert_array_equal(neighbour_agreement(angles(0, 49, 50, 10), reference), [0, 0, 0, 0])


def test_label_hits_ask_for_the_label_of_the_nearest_other_row() -> None:
    np.testing.assert_array_equal(label_hits(angles(0, 10, 50, 55), torch.tensor([3, 3, 3, 4])), [1, 1, 0, 0])


def test_ranks_count_documents_that_score_higher() -> None:
    rank = ranks(angles(0, 40, 90), angles(5, 1, 80))
    assert rank.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(first_hits(rank), [0, 0, 1])
    np.testing.assert_allclose(reciprocal_ranks(rank), [1 / 2, 1 / 2, 1])


def test_collapsed_embeddings_rank_last() -> None:
    assert ranks(angles(0, 40, 90), angles(7, 7, 7)).tolist() == [3, 3, 3]


def test_margin_of_a_constant_shift_has_no_spread() -> None:
    control = np.random.default_rng(0).normal(size=50)
    found = margin(control + 0.25, control)
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.significant


def test_margin_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(loc=0.1, size=400)
    found = margin(values, np.zeros(400))
    half_width = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.value - half_width, abs=0.02)
    assert found.high == pytest.approx(found.value + half_width, abs=0.02)


def test_margin_of_noise_is_not_significant() -> None:
    noise = np.tile([1.0, -1.0], 100)
    assert not margin(noise, np.zeros(200)).significant


def test_margin_refuses_values_of_other_items() -> None:
    with pytest.raises(ValueError, match="one value an item"):
        margin(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="one value an item"):
        margin(np.ones(0), np.ones(0))
