"""What steps cost is measured once for an artifact, and a cache that is damaged or closed is no reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersor import cost_cache
from tersor.certificate import CERTIFICATE
from tersor.cost_cache import kept
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.machine import machine_facts

CURVE = CostCurve((1, 2, 5), (1.0, 1.25, 2.0))


class Measure:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> CostCurve:
        self.asked += 1
        return CURVE


def now() -> float:
    """As long as it was."""
    return CURVE.of(1)


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / CERTIFICATE).write_text("{}")
    return folder


def test_it_is_measured_once_and_again_where_anything_differs(artifact: Path) -> None:
    measure = Measure()
    assert [kept(artifact, {"threads": 1}, measure, now) for _ in range(3)] == [CURVE] * 3
    assert measure.asked == 1
    kept(artifact, {"threads": 2}, measure, now)
    assert measure.asked == 2
    (artifact / CERTIFICATE).write_text('{"another": 1}')
    kept(artifact, {"threads": 1}, measure, now)
    assert measure.asked == 3


def test_another_machine_measures_for_itself(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a home folder is shared by machines: each keeps its own, and finds it again."""
    measure = Measure()
    here = machine_facts(bandwidth=False)
    for facts, asked in (
        (here, 1),
        (here | {"processor": "another"}, 2),
        (here, 2),
        (here | {"cores": 999}, 3),
    ):
        monkeypatch.setattr(cost_cache, "machine_facts", lambda bandwidth, facts=facts: facts)
        kept(artifact, {"threads": 1}, measure, now)
        assert measure.asked == asked


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"widths": [1]}', '{"widths": [1, 1], "seconds": [1, 2]}', '{"widths": [2], "seconds": [1]}',
        '{"widths": [1, 2], "seconds": [2, 1]}', '{"widths": [1], "seconds": [0]}',
        '{"widths": [1], "seconds": [NaN]}', '{"widths": [1, Infinity], "seconds": [1, 2]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_measured_again_and_kept(artifact: Path, tmp_path: Path, text: str) -> None:
    measure = Measure()
    kept(artifact, {}, measure, now)
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text(text)
    assert kept(artifact, {}, measure, now) == CURVE
    assert measure.asked == 2
    kept(artifact, {}, measure, now)
    assert measure.asked == 2
    assert [path.suffix for path in file.parent.iterdir()] == [".json"]


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
    assert kept(artifact, {}, Measure(), now) == CURVE


def test_a_user_without_a_home_is_no_reason_to_fail(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", none)
    assert kept(artifact, {}, Measure(), now) == CURVE


def test_a_model_that_is_no_artifact_is_measured_each_time(tmp_path: Path) -> None:
    measure = Measure()
    kept(None, {}, measure, now)
    kept(None, {}, measure, now)
    kept(tmp_path, {}, measure, now)
    assert measure.asked == 3


@pytest.mark.parametrize(("seconds", "asked"), [(0.4, 2), (0.6, 1), (1.9, 1), (2.5, 2)])
def test_what_was_found_while_the_machine_was_busy_is_measured_again(
    artifact: Path, seconds: float, asked: int
) -> None:
    measure = Measure()
    kept(artifact, {}, measure, now)
    kept(artifact, {}, measure, lambda: seconds)
    assert measure.asked == asked
