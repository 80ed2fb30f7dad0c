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


def apart(count: int) -> np.ndarray:
    """Every item is from a source of its own."""
    return np.arange(count)


def clustered(
    rng: np.random.Generator, sources: int, each: int, between: float
) -> tuple[np.ndarray, np.ndarray]:
    """Values that differ by ``between`` from source to source and by 0.3 within; and the sources."""
    source = np.repeat(np.arange(sources), each)
    return rng.normal(0, between, sources)[source] + rng.normal(0, 0.3, len(source)), source


def test_margin_of_a_constant_shift_has_no_spread() -> None:
    control = np.random.default_rng(0).normal(size=50)
    found = margin(control + 0.25, control[None], apart(50))
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert found.significant


def test_margin_is_over_the_mean_of_the_controls() -> None:
    controls = np.random.default_rng(0).normal(size=(5, 20))
    values = np.random.default_rng(1).normal(size=20)
    found = margin(values, controls, apart(20) // 4)
    assert found.value == pytest.approx((values - controls.mean(axis=0)).mean())


def test_margin_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(loc=0.1, size=400)
    found = margin(values, np.zeros((1, 400)), apart(400))
    half_width = 1.96 * values.std() / 20
    assert found.low == pytest.approx(found.value - half_width, abs=0.02)
    assert found.high == pytest.approx(found.value + half_width, abs=0.02)


def test_margin_interval_of_clustered_items_is_that_of_their_means() -> None:
    values, source = clustered(np.random.default_rng(2), sources=100, each=8, between=1.0)
    means = values.reshape(100, 8).mean(axis=1)
    found = margin(values, np.zeros((1, 800)), source)
    half_width = 1.984 * means.std(ddof=1) / 10
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.08)
    alone = margin(values, np.zeros((1, 800)), apart(800))
    assert found.high - found.low > 2 * (alone.high - alone.low)


def test_margin_interval_of_few_sources_is_as_wide_as_students() -> None:
    means = np.array([-1.4, -0.9, -0.5, -0.2, 0.2, 0.5, 0.9, 1.4])
    found = margin(np.repeat(means, 5), np.zeros((1, 40)), np.repeat(np.arange(8), 5))
    half_width = 2.365 * means.std(ddof=1) / np.sqrt(8)
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.06)


def test_margin_interval_widens_with_the_spread_of_the_seeds() -> None:
    values = np.zeros(200)
    shifts = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    same = margin(values, np.zeros((5, 200)), apart(200))
    found = margin(values, shifts + np.zeros((5, 200)), apart(200))
    assert (same.low, same.high) == (0.0, 0.0)
    assert found.value == pytest.approx(0.0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * shifts.std() / np.sqrt(5), rel=0.1)


def test_sources_count_by_how_many_items_they_hold() -> None:
    """One large source and many small ones: what is drawn is still a mean over items."""
    source = np.array([0] * 90 + list(range(1, 11)))
    values = np.where(source == 0, 1.0, 0.0)
    found = margin(values, np.zeros((1, 100)), source)
    assert found.value == pytest.approx(0.9)
    assert found.low == 0.0, "it may not be drawn at all"
    assert found.high < 1.0


def test_margin_holds_the_true_difference_in_95_of_100_cases() -> None:
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        values, source = clustered(rng, sources=16, each=16, between=0.1)
        controls = rng.normal(0, 0.03, (5, 1)) + rng.normal(0, 0.3, (5, 256))
        found = margin(values, controls, source)
        held += found.low <= 0.0 <= found.high
    assert 0.92 < held / 400 < 0.98


def test_margin_of_noise_is_not_significant() -> None:
    noise = np.tile([1.0, -1.0], 100)
    assert not margin(noise, np.zeros((1, 200)), apart(200)).significant


def test_margin_refuses_values_of_other_items() -> None:
    for controls, clusters in (
        (np.ones((2, 4)), apart(3)),
        (np.ones((2, 3)), apart(4)),
        (np.ones(3), apart(3)),
    ):
        with pytest.raises(ValueError, match=r"must be \[items\], \[seeds, items\]"):
            margin(np.ones(3), controls, clusters)
    with pytest.raises(ValueError, match=r"must be \[items\]"):
        margin(np.ones(3), np.ones((0, 3)), apart(3))


@pytest.mark.parametrize("items", [0, 3])
def test_margin_refuses_a_single_source(items: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        margin(np.ones(items), np.ones((1, items)), np.zeros(items, dtype=np.int64))
