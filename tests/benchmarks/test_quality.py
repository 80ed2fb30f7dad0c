"""The verdict over the rows of a comparison, on scores whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.quality import Comparison, Row, control, verdict
from benchmarks.tasks import Task


class Known(Task):
    """A task of which only the names matter: four items from each of five sources."""

    title, metrics, deciding = "Known", ("found", "cosine"), ("found",)
    clusters = np.arange(20) // 4

    def describe(self) -> str:
        return ""

    def scores(self, program: Any) -> Any:
        raise NotImplementedError


def row(found: float, cosine: float = 0.5) -> Row:
    spread = np.linspace(-0.1, 0.1, 20)
    return Row(0.5, 0.5, {"found": found + spread, "cosine": cosine + spread})


def comparison(**rows: Row) -> Comparison:
    named = {name.replace("_", "-"): found for name, found in rows.items()}
    return Comparison(Known(), 0.5, [row(0.4), row(0.6)], named, {"gone": "no class token"})


def test_random_choice_is_the_mean_over_its_seeds() -> None:
    found = control([row(0.4), row(0.6)])["found"]
    assert found.shape == (2, 20)
    np.testing.assert_allclose(found.mean(), 0.5)


def test_how_sure_a_difference_is_depends_on_sources_and_seeds() -> None:
    """Twenty items that differ by source alone, and two seeds that differ, are no twenty-fold evidence."""
    by_source = Row(0.5, 0.5, {"found": 0.55 + 0.1 * (Known.clusters - 2.0), "cosine": np.zeros(20)})
    flat = Row(0.5, 0.5, {"found": np.full(20, 0.5), "cosine": np.zeros(20)})
    found = Comparison(Known(), 0.5, [flat, flat], {"tome": by_source}, {}).over_random("tome", "found")
    assert found.low < 0 < found.high
    one = Comparison(Known(), 0.5, [row(0.4), row(0.4)], {"tome": row(0.45)}, {}).over_random("tome", "found")
    two = Comparison(Known(), 0.5, [row(0.3), row(0.5)], {"tome": row(0.45)}, {}).over_random("tome", "found")
    assert one.value == pytest.approx(two.value)
    assert one.low > 0 > two.low


def test_the_verdict_counts_methods_and_not_controls() -> None:
    text = verdict([comparison(tome=row(0.7), norm=row(0.1)), comparison(hired=row(0.8))])
    assert "2 of 2 rows" in text
    assert "2 of them with every such interval above zero" in text
    assert "Not:" not in text


def test_the_verdict_names_what_does_not_beat_random_choice_and_where() -> None:
    text = verdict([comparison(tome=row(0.7), zero_tprune=row(0.45))])
    assert "1 of 2 rows" in text
    assert "Not: `zero-tprune` on Known at 50.0% (found -0.050)." in text


def test_what_does_not_decide_cannot_fail_a_method() -> None:
    assert "1 of 1 rows" in verdict([comparison(tome=row(0.7, cosine=0.1))])


def test_the_table_says_by_how_much_and_what_was_refused() -> None:
    text = comparison(tome=row(0.7), norm=row(0.1)).markdown()
    assert "**+0.200 (+0.100 to +0.300)**" in text
    assert "| norm (control) |" in text
    assert "-0.400 (-0.500 to -0.300)" in text
    assert "`gone`: no class token." in text
