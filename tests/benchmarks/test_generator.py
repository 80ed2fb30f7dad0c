"""What the section on generators says of runs whose times and tokens are known."""

from __future__ import annotations

from benchmarks.generator import SIDES, Result, missed, section
from examples.prompts import Prompt
from tersor.runtime.divergence import Divergence


def result(kind: str, seconds: tuple[float, float, float], *parted: Divergence) -> Result:
    """Ten tokens on every side, in so many seconds by ``generate`` and by both files."""
    times = {side: [taken] for side, taken in zip(SIDES, seconds, strict=True)}
    return Result(Prompt(kind, [1, 2]), times, {side: list(range(10)) for side in SIDES}, list(parted))


def test_ratios_are_geometric_means_by_kind_and_over_all() -> None:
    tie = Divergence(3, (5, 6), 1e-4, 1e-4)
    text = section([result("prose", (4.0, 4.0, 2.0)), result("code", (4.0, 1.0, 0.125), tie)], 10, 1)
    assert "| prose | 4.00 | 4.00 | 2.00 | 1.00 | 2.00 |" in text
    assert "| **all** | 4.00 | 2.50 | 1.06 | 0.50 | 4.00 |" in text
    assert (
        "1 of 2 prompts have the same tokens on all sides to the end; the others part at: token 3: 5 and 6"
        in text
    )
    assert "Below what is asked: nothing." in text


def test_what_is_missed_is_named() -> None:
    bug = Divergence(3, (5, 6), 0.5, 1e-4)
    found = missed([result("prose", (4.0, 5.0, 4.0), bug)])
    assert [text.split(" (")[0] for text in found[:2]] == [
        "greedy file takes 1.25 of generate, plain",
        "guessing file over greedy file: 1.25",
    ]
    assert found[2].startswith("token 3: 5 and 6")
