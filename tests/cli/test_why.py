"""``tersor why``: one line, and an exit code that says whether the tokens are the model's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from text_folder import save_text_model

from .conftest import Tersor


@pytest.fixture(scope="module")
def folders(tersor: Tersor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("why")
    model = save_text_model(place / "model")
    outcome = tersor("convert", model, "-p", "kv-cache", "--target", "torch", "-o", place / "out")
    assert outcome.code == 0, outcome.stderr
    return model, place / "out"


def test_it_says_that_all_tokens_are_the_models(tersor: Tersor, folders: tuple[Path, Path]) -> None:
    model, out = folders
    outcome = tersor("why", out, "Once", "--against", model, "--max-new-tokens", "9")
    assert outcome.code == 0, outcome.stderr
    assert "tokens are the model's own" in outcome.stdout
    told = tersor("why", out, "Once", "--against", model, "--max-new-tokens", "9", "--json").json
    assert told["ok"] is True
    assert told["divergence"] is None


def test_a_prompt_is_read_as_generate_reads_it(tersor: Tersor, folders: tuple[Path, Path]) -> None:
    model, out = folders
    command = [sys.executable, "-m", "tersor", "why", str(out), "-", "--against", str(model)]
    told = subprocess.run(command, input=b"sch\xf6n", capture_output=True, check=False)
    assert told.returncode == 2
    assert b"the prompt on stdin is no UTF-8 text" in told.stderr
    half = tersor("why", out, "a\udcffb", "--against", model)
    assert half.code == 2
    assert "its character 1 is half of one" in half.error


def test_bench_says_that_it_times_no_generation(tersor: Tersor, folders: tuple[Path, Path]) -> None:
    told = tersor("bench", folders[1], "--against", folders[0], "--pairs", "1")
    assert (
        "note     of one pass over whole rows; the ratio says nothing of how fast it generates" in told.stdout
    )


def test_another_model_is_no_tie(tersor: Tersor, folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = save_text_model(tmp_path / "other", seed=5)
    outcome = tersor("why", folders[1], "Once", "--against", other, "--max-new-tokens", "20")
    assert outcome.code == 1
    assert "no tie" in outcome.error
