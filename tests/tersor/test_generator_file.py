"""``export_onnx(generate=True)``: a file that needs ONNX Runtime and NumPy alone, and says why where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from text_folder import save_text_model

from tersor import InputError, LoweringError, generator_file, load, optimize_model

PROMPT = [84, 104, 101, 32, 99, 97, 116, 32, 84, 104, 101]
ALONE = """
import json, sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = {"input_ids": np.array([json.loads(sys.argv[2])]), "max_new_tokens": np.array(int(sys.argv[3]))}
print(session.run(None, given)[0][0].tolist())
assert not {"torch", "transformers", "tersor", "onnx"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def fast(folder: Path) -> Any:
    return optimize_model(folder, ["kv-cache", "speculate:drafter=ngram"], "onnx", threads=1)


@pytest.fixture(scope="module")
def made(folder: Path) -> Callable[..., Any]:
    """The model after some passes, each list of them applied once."""
    return cache(lambda *passes: optimize_model(folder, list(passes), "torch"))


def alone(file: Path, prompt: list[int], most: int) -> list[int]:
    """What the file says in a process that imports ``onnxruntime`` and ``numpy``."""
    command = [sys.executable, "-c", ALONE, str(file), json.dumps(prompt), str(most)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("guess", [False, True])
def test_onnxruntime_and_numpy_are_all_it_takes(fast: Any, guess: bool, tmp_path: Path) -> None:
    file = tmp_path / "new" / "gen.onnx"
    assert fast.export_onnx(file, generate=True, guess=guess) == [file]
    assert list(file.parent.iterdir()) == [file]
    assert alone(file, PROMPT, 40) == fast.generate([PROMPT], max_new_tokens=40)[0][len(PROMPT) :]


def test_it_ends_where_the_model_does_or_where_it_is_told_to(fast: Any, tmp_path: Path) -> None:
    free = fast.generate([PROMPT], max_new_tokens=12)[0][len(PROMPT) :]
    end, other = free[5], free[2]
    ending = optimize_model(save_text_model(tmp_path / "ending", end), ["kv-cache"], "torch")
    by_model = free[: free.index(end) + 1]
    for name, options, expected in (
        ("model", {}, by_model),
        ("none", {"end_tokens": None}, free),
        ("one", {"end_tokens": other}, free[: free.index(other) + 1]),
        ("two", {"end_tokens": [other, end]}, free[: min(map(free.index, (other, end))) + 1]),
    ):
        ending.export_onnx(tmp_path / f"{name}.onnx", generate=True, **options)
        assert alone(tmp_path / f"{name}.onnx", PROMPT, 12) == expected


def test_a_file_that_says_something_else_is_not_handed_over(
    fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = generator_file.run
    monkeypatch.setattr(generator_file, "run", lambda *given: (true(*given)[0].roll(1) + 1,))
    with pytest.raises(LoweringError, match=r"does not generate what the Program generates.*: no tie"):
        fast.export_onnx(tmp_path / "gen.onnx", generate=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(generator_file, "run", lambda *given: (true(*given)[0][:, :-1],))
    with pytest.raises(LoweringError, match="token 15: what is compared ends there"):
        fast.export_onnx(tmp_path / "gen.onnx", generate=True)


def test_a_file_of_rounded_weights_is_held_to_the_weights_that_it_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding to 4 bits moves logits so far that any mistake would pass for a tie."""
    rounded = optimize_model(
        folder, ["kv-cache"], "onnx", weights="int4", on_violation="revert", max_deviation=1.0, threads=1
    )
    seen = []
    true = generator_file.first_divergence
    monkeypatch.setattr(generator_file, "first_divergence", lambda *given: seen.append(given) or true(*given))
    rounded.export_onnx(tmp_path / "gen.onnx", generate=True)
    assert not seen
    exact = optimize_model(folder, ["kv-cache"], "onnx", threads=1)
    expected = exact.generate([PROMPT], max_new_tokens=24)[0][len(PROMPT) :]
    assert alone(tmp_path / "gen.onnx", PROMPT, 24) == expected


@pytest.mark.parametrize(
    ("passes", "options", "reason"),
    [
        ([], {}, "convert it with -p kv-cache"),
        (["kv-cache"], {"ops": "ort"}, "ops='ort' with generate=True"),
        (["kv-cache"], {"end_tokens": [3, 256]}, "256 is no token id from 0 to 255"),
        (["kv-cache"], {"end_tokens": "</s>"}, "'<' is no token id"),
        (["kv-cache"], {"end_tokens": 5.5}, "5.5 is no token id"),
        (["kv-cache"], {"end_tokens": 5, "generate": False}, "add generate=True"),
        (["kv-cache"], {"guess": False, "generate": False}, "add generate=True"),
        (["kv-cache", "speculate:drafter=recycle"], {}, "'recycle' remembers more than the text"),
    ],
)
def test_what_makes_no_sense_is_one_clear_error(
    made: Callable[..., Any], passes: list[str], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        made(*passes).export_onnx(tmp_path / "gen.onnx", **{"generate": True, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("drafter", ["recycle", "ppd"])
def test_a_drafter_that_no_file_can_hold_leaves_one_without_guesses(
    made: Callable[..., Any], tmp_path: Path, drafter: str
) -> None:
    remembering = made("kv-cache", f"speculate:drafter={drafter}")
    remembering.export_onnx(tmp_path / "gen.onnx", generate=True, guess=False)
    expected = remembering.generate([PROMPT], max_new_tokens=9)[0][len(PROMPT) :]
    assert alone(tmp_path / "gen.onnx", PROMPT, 9) == expected


def test_an_artifact_becomes_a_file_too(fast: Any, tmp_path: Path) -> None:
    fast.save(tmp_path / "out")
    load(tmp_path / "out").export_onnx(tmp_path / "gen.onnx", generate=True)
    expected = fast.generate([PROMPT], max_new_tokens=9)[0][len(PROMPT) :]
    assert alone(tmp_path / "gen.onnx", PROMPT, 9) == expected


def test_rows_that_share_pages_become_a_file_too(made: Callable[..., Any], tmp_path: Path) -> None:
    paged = made("kv-cache:layout=paged,page=4", "speculate:drafter=ngram")
    paged.save(tmp_path / "out")
    expected = made("kv-cache").generate([PROMPT], max_new_tokens=30)[0]
    loaded = load(tmp_path / "out")
    assert loaded.generate([PROMPT], max_new_tokens=30)[0] == expected
    loaded.export_onnx(tmp_path / "gen.onnx", generate=True)
    assert alone(tmp_path / "gen.onnx", PROMPT, 30) == expected[len(PROMPT) :]


def test_a_model_that_takes_more_than_ids_is_refused(
    fast: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing says of the mask that it is one.
    program = replace(fast.program, stepping=replace(fast.program.stepping, padding=None))
    monkeypatch.setattr(fast.generator, "program", program)
    with pytest.raises(InputError, match="also takes attention_mask"):
        fast.export_onnx(tmp_path / "gen.onnx", generate=True)
