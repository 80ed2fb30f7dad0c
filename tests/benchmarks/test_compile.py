"""What the section on compiling says of runs whose times are known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from benchmarks import compile as benchmark
from benchmarks.compile import Result, section
from benchmarks.page import PAGE

WEIGHTS = 100


def runs(*figures: tuple[float, float, int]) -> list[Result]:
    """From seconds warm, seconds cold and bytes at the peak of each."""
    return [Result({"first": warm - 1.0, "second": 1.0}, peak, WEIGHTS, cold) for warm, cold, peak in figures]


@pytest.fixture
def lines() -> list[str]:
    ours = runs((4.0, 9.0, 250), (3.0, 12.0, 265), (5.0, 8.0, 259))
    theirs = runs((8.0, 12.0, 220), (7.0, 11.0, 221), (9.0, 10.0, 219))
    return section({"vit": {"tersor": ours, "exporter": theirs}}).splitlines()


def test_a_row_has_warm_and_cold_seconds_and_the_spread_of_all(lines: list[str]) -> None:
    title = benchmark.SUBJECTS["vit"].title
    stages = "first 3.0, second 1.0"
    assert (
        f"| {title}, tersor | 4.0 (3.0 to 5.0) | {stages} | 9.0 (8.0 to 12.0) | 2.59 (2.50 to 2.65) |"
        in lines
    )
    assert (
        f"| {title}, exporter | 8.0 (7.0 to 9.0) | first 7.0, second 1.0 | 11.0 (10.0 to 12.0) |"
        in "\n".join(lines)
    )


def test_the_verdict_is_of_medians_of_both_and_of_the_largest_peak(lines: list[str]) -> None:
    assert lines[-3].endswith(
        "4.0 s (limit 60); 0.50 of the exporter's time (limit 1), 0.82 of it cold, which is held to the same; "
        "peak at most 2.65 times the weights (limit 3)."
    )
    assert lines[-1] == "Below what is asked: nothing."


def test_the_section_says_what_the_processes_did_before(lines: list[str]) -> None:
    text = " ".join(lines)
    assert "of 3 processes of each side and kind" in text
    assert "each process has compiled a small model of the same kind before" in text
    assert "the first thing that a new process compiles" in text


@pytest.mark.parametrize("warm", [True, False])
def test_only_a_warm_process_compiles_a_small_model_first(
    warm: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[bool] = []
    worked: list[str] = []
    monkeypatch.setitem(
        benchmark._WORK, "tersor", lambda *given: worked.append(given[-1].name) or {"only": 1.0}
    )

    def make(small: bool) -> benchmark.Made:
        made.append(small)
        return nn.Linear(2, 2), {}

    subject = benchmark.Subject("known", make, {}, (), ratio=1.0)
    result = benchmark.measure("tersor", subject, tmp_path, warm=warm)
    assert (made, worked) == (
        ([True, False], ["small.onnx", "model.onnx"]) if warm else ([False], ["model.onnx"])
    )
    assert (result.stages, result.weights, result.cold) == ({"only": 1.0}, 4 * 6, 0.0)


def test_a_result_has_the_cold_process_beside_the_warm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"cold": Result({"only": 7.0}, 1, WEIGHTS), "warm": Result({"only": 3.0}, 250, WEIGHTS)}
    monkeypatch.setattr(benchmark, "_in_new_process", lambda side, name, state: known[state])
    result = benchmark.in_new_processes("tersor", "vit")
    assert (result.seconds, result.cold, result.memory) == (3.0, 7.0, 2.5)


def test_neither_side_is_imported_before_the_clock_starts() -> None:
    code = (
        "import sys, benchmarks.compile as c; c.SUBJECTS['decoder'].make(True);"
        "print(*[m for m in sys.modules if m.startswith(('tersor.ir', 'tersor.passes', 'tersor.codegen', 'onnx'))])"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PAGE.parents[1])
    assert run.stdout.strip() == ""


def test_a_cold_process_is_held_to_the_limit_too() -> None:
    sides = {"tersor": runs((4.0, 9.0, 250)), "exporter": runs((8.0, 8.0, 250))}
    missed = "DINOv2 ViT-S/14, 224 px: 1.12 of the exporter's time, cold (limit 1)"
    assert benchmark.missed({"vit": sides}) == [missed]
    assert section({"vit": sides}).endswith(f"Below what is asked: {missed}.")
