"""``tersor generate``: streams to the terminal what the artifact says next."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from text_folder import save_text_model

from .conftest import Tersor


@pytest.fixture(scope="module")
def talking(tersor: Tersor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("talking")
    outcome = tersor(
        "convert",
        save_text_model(place / "model"),
        "-p",
        "kv-cache",
        "--target",
        "torch",
        "-o",
        place / "out",
    )
    assert outcome.code == 0, outcome.stderr
    return place / "out"


def test_it_prints_the_text_or_json(tersor: Tersor, talking: Path) -> None:
    plain = tersor("generate", talking, "Once", "--max-new-tokens", "12")
    assert plain.code == 0, plain.stderr
    told = tersor("generate", talking, "Once", "--max-new-tokens", "12", "--json")
    assert told.json["prompt"] == "Once"
    assert plain.stdout == told.json["text"] + "\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly(talking: Path) -> None:
    command = [sys.executable, "-m", "tersor", "generate", str(talking), "Once", "--max-new-tokens", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(timeout=60) == 0


def test_draws_are_made_again_by_a_seed(tersor: Tersor, talking: Path) -> None:
    drawn = [
        tersor("generate", talking, "Once", "--temperature", "1.5", "--seed", seed, "--json").json["text"]
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_artifact_without_a_cache_says_what_to_do(tersor: Tersor, artifact: Path) -> None:
    outcome = tersor("generate", artifact, "Once")
    assert outcome.code == 2
    assert "convert it with -p kv-cache" in outcome.error


def test_a_file_that_generates_by_itself_is_written_beside_the_artifact(
    tersor: Tersor, tmp_path: Path
) -> None:
    import numpy as np
    import onnxruntime

    outcome = tersor(
        "convert", save_text_model(tmp_path / "model"), "-p", "kv-cache", "-p", "speculate", "--target", "torch",
        "-o", tmp_path / "out", "--generator", tmp_path / "gen.onnx", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["generator"] == [str(tmp_path / "gen.onnx")]
    session = onnxruntime.InferenceSession(str(tmp_path / "gen.onnx"), providers=["CPUExecutionProvider"])
    new = session.run(None, {"input_ids": np.array([[79, 110]]), "max_new_tokens": np.array(5)})[0]
    assert new.shape == (1, 5)


def test_a_file_that_generates_needs_a_cache(tersor: Tersor, model_folder: Path, tmp_path: Path) -> None:
    outcome = tersor("convert", model_folder, "-o", tmp_path / "out", "--generator", tmp_path / "gen.onnx")
    assert outcome.code == 2
    assert "add -p kv-cache" in outcome.error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["out/gen.onnx", "out", "out/sub/gen.onnx", "old/gen.onnx"])
def test_a_file_that_generates_goes_beside_artifacts(
    tersor: Tersor, talking: Path, tmp_path: Path, place: str
) -> None:
    shutil.copytree(talking, tmp_path / "old")
    command = ("convert", tmp_path / "none", "-p", "kv-cache", "-o", tmp_path / "out", "--generator")
    outcome = tersor(*command, tmp_path / place)
    assert outcome.code == 2
    assert "give a place beside it" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [("--stop", "", "--stop is given an empty text"), ("--temperature", "nan", "temperature=nan")],
)
def test_what_makes_no_sense_is_said_before_the_model_is_read(
    tersor: Tersor, tmp_path: Path, option: str, value: str, reason: str
) -> None:
    outcome = tersor("generate", tmp_path / "none", "Once", option, value)
    assert outcome.code == 2
    assert reason in outcome.error


def test_a_drafter_that_no_file_can_hold_is_named_before_the_model_is_read(
    tersor: Tersor, tmp_path: Path
) -> None:
    command = [
        "convert",
        tmp_path / "none",
        "-p",
        "kv-cache",
        "-p",
        "speculate:drafter=recycle",
        "-o",
        tmp_path / "out",
    ]
    outcome = tersor(*command, "--generator", tmp_path / "gen.onnx")
    assert outcome.code == 2
    assert "'recycle' remembers more than the text" in outcome.error
    assert "with one of ngram, several, suffix, or write the file without guesses" in outcome.error
    without = tersor(*command, "--no-guess")
    assert "--generator" in without.error


def test_a_file_may_be_written_without_guesses(tersor: Tersor, tmp_path: Path) -> None:
    outcome = tersor(
        "convert", save_text_model(tmp_path / "model"), "-p", "kv-cache", "-p", "speculate:drafter=recycle",
        "--target", "torch", "-o", tmp_path / "out", "--generator", tmp_path / "gen.onnx", "--no-guess",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert (tmp_path / "gen.onnx").exists()


def test_the_prompt_may_come_from_stdin(talking: Path) -> None:
    def of(text: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "tersor", "generate", str(talking), "-", "--json"]
        return subprocess.run(command, input=text, capture_output=True, check=False)

    told = of("schön".encode())
    assert json.loads(told.stdout)["prompt"] == "schön"
    refused = of("schön".encode("latin-1"))
    assert refused.returncode == 2
    assert (
        refused.stderr.decode()
        == "error: the prompt on stdin is no UTF-8 text: byte 3 of it is none of one\n"
    )


def test_what_the_target_chose_is_said(tersor: Tersor, tmp_path: Path) -> None:
    model, out = save_text_model(tmp_path / "model"), tmp_path / "out"
    assert tersor("convert", model, "-p", "kv-cache", "--target", "onnx", "-o", out).code == 0
    told = tersor("generate", out, "Once", "--max-new-tokens", "3")
    assert "steps of one row: 2 cached_attention by GroupQueryAttention" in told.stderr
    data = tersor("generate", out, "Once", "--max-new-tokens", "3", "--json").json
    assert data["chosen"] == {"one row": ["2 cached_attention by GroupQueryAttention"]}


def test_a_text_that_grows_past_what_the_model_was_made_for_is_noted(tersor: Tersor, talking: Path) -> None:
    told = tersor("generate", talking, "Once", "--max-new-tokens", "200")
    assert told.code == 0
    assert "note: up to 204 tokens with what follows, and the model was made for texts of 128" in told.stderr


def test_weights_in_8_bits_are_stated_saved_and_generated_with(tersor: Tersor, tmp_path: Path) -> None:
    model, out = save_text_model(tmp_path / "model"), tmp_path / "out"
    outcome = tersor("convert", model, "-p", "kv-cache", "--weights", "int8", "-o", out, "--json")
    assert outcome.code == 0, outcome.stderr
    (trial,) = outcome.json["report"]["storage"]["trials"]
    assert trial["kind"] == "int8"
    assert abs(trial["loss"]) < 0.01
    told = tersor("generate", out, "Once", "--max-new-tokens", "12", "--json")
    assert told.code == 0, told.stderr
    assert told.json["statistics"]["tokens"] > 0
    assert tersor("verify", out, "--against", model).code == 0


def test_a_kind_of_weights_that_does_not_go_with_the_target_is_named(tersor: Tersor, tmp_path: Path) -> None:
    outcome = tersor("convert", tmp_path, "--weights", "int8", "--target", "torch", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert "no option 'weights'" in outcome.error
