"""The verdict over the rows of a comparison, on scores whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.quality import Comparison, Row, control, verdict
from benchmarks.tasks import Task


class Known(Task):
    """A task of which only the names matter."""

    title, metrics, deciding = "Known", ("found", "cosine"), ("found",)

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
    np.testing.assert_allclose(control([row(0.4), row(0.6)])["found"].mean(), 0.5)


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
    assert "**+0.200 (+0.200 to +0.200)**" in text
    assert "| norm (control) |" in text
    assert "-0.400 (-0.400 to -0.400)" in text
    assert "`gone`: no class token." in text
