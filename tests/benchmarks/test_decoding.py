"""What the section on decoding says of runs whose times and tokens are known."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from benchmarks import decoding, decoding_sides
from benchmarks.decoding import (
    DEFAULT,
    DRAFTERS,
    DRAWN,
    DRAWN_BY,
    LOOKUP,
    PEER,
    PLAIN,
    Bench,
    Result,
    missed,
    section,
)
from examples.prompts import Prompt
from tersor.runtime.divergence import Divergence
from tersor.runtime.speculation import Statistics

FIRST = {PEER: 2.0, PLAIN: 1.0}


def result(kind: str, seconds: tuple[float, float, float], parted: Divergence | None = None) -> Result:
    """Ten tokens on every side, in so many seconds by transformers, plain, and with guesses of any drafter."""
    sides = dict(zip((PEER, PLAIN), seconds, strict=False)) | dict.fromkeys(DRAFTERS, seconds[2])
    sides |= {LOOKUP: seconds[0], DRAWN: seconds[1], DRAWN_BY: seconds[2]}
    return Result(
        Prompt(kind, [1, 2]),
        {side: [time] for side, time in sides.items()},
        {side: list(range(10)) for side in sides},
        {} if parted is None else dict.fromkeys((PLAIN, *DRAFTERS), parted),
        {name: Statistics(4, 10, 4, [2, 2], [2, 1], 0.004, 0.08) for name in DRAFTERS},
    )


def test_ratios_are_geometric_means_by_kind_and_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "read_bandwidth", lambda: 100e9)
    results = [result("prose", (8.0, 4.0, 1.0)), result("code", (8.0, 2.0, 1.0))]
    text = section(results, FIRST, {"another": 0.5}, 10**9, "1/2 tokens: 1.0/1.1", 10, 1)
    assert "| prose | 1.2 | 1.2 | 2.5 | 10.0 | 2.00 | 8.00 | 4.00 | 4.00 |" in text
    assert "| **all** | 1.2 | 1.2 | 3.8 | 10.0 | 2.83 | 8.00 | 2.83 | 2.83 |" in text
    assert "| ngram | 2.83 | 2.00 | 2.50 | 50% | 75% | 20.0 | 1.0 | 2 to 4x where" in text
    assert "Seconds to the first token behind 1000 tokens: 1.00, of transformers 2.00, ratio 0.50." in text
    assert "at its fastest 5% of this machine's" in " ".join(text.split())
    assert "2 of 2 prompts have the tokens of transformers to the end." in text
    assert "times as fast as transformers: another 0.50." in text
    assert "Below what is asked: nothing." in text


def test_what_is_missed_is_named() -> None:
    bug, tie = Divergence(3, (5, 6), 0.5, 1e-4, 1e-4), Divergence(3, (5, 6), 1e-4, 1e-4, 1e-4)
    assert missed([result("prose", (8.0, 4.0, 1.0), tie)], FIRST) == []
    found = missed([result("prose", (8.0, 5.0, 5.2), bug)], FIRST)
    best = DRAFTERS[0]
    assert [text.split(":")[0] for text in found] == [
        "plain over transformers", f"{best} over transformers", f"{best} over plain", f"{best} over plain on prose",
        *(f"{name} over plain on the worst prompt" for name in DRAFTERS),
        f"{DRAWN_BY} over drawn on the worst prompt", f"draws with {DEFAULT} over draws",
        *(f"{name} token 3" for name in (PLAIN, *DRAFTERS)),
    ]  # fmt: skip


def test_a_late_first_token_is_missed() -> None:
    found = missed([result("prose", (8.0, 2.0, 0.5))], {PEER: 2.0, PLAIN: 1.9})
    assert found == ["time to first token: 0.95 (at most 0.85)"]


def test_sides_that_part_alike_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "read_bandwidth", lambda: 100e9)
    tie = Divergence(3, (5, 6), 1e-4, 1e-4, 1e-4)
    text = section([result("prose", (8.0, 4.0, 1.0), tie)], FIRST, {"another": 0.5}, 10**9, "", 10, 1)
    assert f"; 1 part at: {', '.join((PLAIN, *DRAFTERS))}: token 3: 5 and 6, margin 0.0001" in text


def test_a_drafter_that_is_wrong_is_seen_where_plain_parts_at_a_tie() -> None:
    def logits(tokens: list[int], rows: int = 1) -> torch.Tensor:
        """Of two tokens ahead 5 and 6 are all but equal; rounding moves what is computed together with others."""
        scores = torch.zeros(20)
        scores[5], scores[6] = 1.0, 1.0 - 1e-4 if len(tokens) == 2 else 0.0
        return scores + 1e-4 * (rows > 1) * torch.arange(20).remainder(2)

    bench = object.__new__(Bench)
    bench.peer = bench.plain = SimpleNamespace(logits=logits)
    found = Result(Prompt("prose", [1]))
    found.tokens = {name: [5, 5, 5, 5] for name in (PEER, PLAIN, *DRAFTERS)}
    wrong, *_ = DRAFTERS
    found.tokens |= {PLAIN: [5, 6, 5, 5], wrong: [9, 9, 9, 9]}
    parted = bench._compared(found)
    assert parted.keys() == {PLAIN, wrong}
    assert (parted[PLAIN].place, parted[PLAIN].is_tie) == (1, True)
    assert (parted[wrong].place, parted[wrong].is_tie) == (0, False)
    found.parted = parted
    found.seconds = result("prose", (8.0, 4.0, 1.0)).seconds
    found.tokens |= {LOOKUP: [5], DRAWN: [5], DRAWN_BY: [5]}
    assert [text for text in missed([found], FIRST) if "no tie" in text] == [f"{wrong} {parted[wrong]}"]


def test_what_seems_to_lose_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = object.__new__(Bench)
    bench.new, bench.drawn = 10, []
    seconds = {PLAIN: 1.0, "suffix": 1.0, "model": 2.0}
    bench.greedy = [Pretended(name, seconds.get(name, 0.5)) for name in (PLAIN, *DRAFTERS)]
    monkeypatch.setattr(decoding_sides, "time", Pretended)
    monkeypatch.setattr(decoding, "HELD", tuple((name, PLAIN) for name in DRAFTERS))
    slow, slower, fine = (result("prose", (8.0, 4.0, s)) for s in (4.5, 5.0, 1.0))
    bench.settle([slow, slower, fine])
    assert not fine.again
    # The first that loses is enough; what does not is measured wherever it seemed to.
    assert slower.again["model"] == 0.5
    assert "model" not in slow.again
    assert slow.again["suffix"] == slower.again["suffix"] == 1.0
    assert slow.again["ngram"] == 2.0
    assert [t.split(":")[0] for t in missed([slow, slower, fine], FIRST) if "worst" in t] == [
        "model over plain on the worst prompt"
    ]


@dataclass
class Pretended:
    """A side, and the clock that it moves."""

    name: str
    seconds: float
    now: ClassVar[float] = 0.0

    def run(self, prompt: list[int], new: int) -> list[int]:
        Pretended.now += self.seconds
        return [0] * new

    @staticmethod
    def perf_counter() -> float:
        return Pretended.now
