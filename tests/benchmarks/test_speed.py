"""The verdict on latency says how many rows meet the limit, and in how many of them chance could not have done it."""

from __future__ import annotations

import pytest

from benchmarks.page import check_limits
from benchmarks.speed import CASES, Row, missed, section
from tersor.runtime.paired import PairedTiming


def row(what: str, ratio: float, high: float, flops: float = 1.0) -> Row:
    return Row(CASES[0], 1, what, flops, PairedTiming(0.1, 0.1 * ratio, ratio, ratio / 2, high, 9))


@pytest.fixture
def text() -> str:
    rows = [
        row("undropped / exporter", 0.84, 1.355),
        row("undropped / exporter", 0.7, 1.0),
        row("undropped / exporter", 1.01, 1.2),
        row("tome / exporter", 0.5, 0.54, flops=0.5),
        row("tome / exporter", 0.5, 0.541, flops=0.5),
        row("tome / undropped", 0.55, 0.8, flops=0.5),
    ]
    return section(rows, 0.5)


def test_a_row_whose_interval_passes_the_limit_is_not_counted_as_sure(text: str) -> None:
    assert "Ratio at most 1 in 2 of 3 rows, 1 of them with the whole interval; the largest is 1.010." in text


def test_latency_and_its_interval_are_held_against_the_flops(text: str) -> None:
    assert (
        "Against *exporter*, latency / FLOPs at most 1.08 in 2 of 2 rows, 1 of them with the whole interval; "
        "the largest is 1.000." in text
    )
    assert (
        "Against *undropped*, latency / FLOPs at most 1.08 in 0 of 1 rows, 0 of them with the whole interval; "
        "the largest is 1.100." in text
    )


def test_rows_past_their_limit_are_missed_and_end_a_check() -> None:
    past = row("tome / exporter", 0.55, 0.8, flops=0.5)
    rows = [row("undropped / exporter", 1.01, 1.2), past, row("tome / undropped", 0.9, 0.9, flops=0.5)]
    assert len(missed(rows)) == 2
    assert "tome / exporter: 1.100 (limit 1.08)" in missed([past])[0]
    assert (
        missed([row("undropped / exporter", 0.99, 1.2), row("tome / exporter", 0.54, 0.8, flops=0.5)]) == []
    )
    check_limits(missed(rows), False)
    check_limits([], True)
    with pytest.raises(SystemExit, match="missed:"):
        check_limits(missed(rows), True)
