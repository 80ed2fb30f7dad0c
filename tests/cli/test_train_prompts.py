"""``tersor train-prompts``: a text and a model in, a file out that ``convert`` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_folder import save_text_model

from .conftest import Tersor


def test_what_it_writes_is_what_convert_reads(tersor: Tersor, tmp_path: Path) -> None:
    model, words, out = save_text_model(tmp_path / "model"), tmp_path / "text.txt", tmp_path / "p.safetensors"
    words.write_text("Once upon a time there was a text. " * 10, encoding="utf-8")
    arguments = ("train-prompts", model, "--text", words, "-o", out, "--prompts", "2", "--length", "32")
    told = tersor(*arguments, "--steps", "60", "--json")
    assert told.code == 0, told.stderr
    assert told.json["after"]["loss"] < told.json["before"]["loss"]
    assert len(told.json["after"]["first"]) == 2
    first = out.read_bytes()
    shown = tersor(*arguments, "--steps", "60")
    assert shown.stdout.startswith("before: loss ")
    assert out.read_bytes() == first
    outcome = tersor(
        "convert", model, "-p", "kv-cache", "-p", f"speculate:drafter=ppd,prompts={out}", "--target", "torch",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    plain = tersor("convert", model, "-p", "kv-cache", "--target", "torch", "-o", tmp_path / "plain")
    assert plain.code == 0, plain.stderr
    texts = [
        tersor("generate", folder, "Once", "--max-new-tokens", "12", "--json")
        for folder in (tmp_path / "out", tmp_path / "plain")
    ]
    assert texts[0].json["text"] == texts[1].json["text"]
    assert tersor("verify", tmp_path / "out", "--against", model).code == 0


@pytest.mark.parametrize(
    ("text", "out", "reason"),
    [
        ("nowhere.txt", "p.safetensors", "nowhere.txt cannot be read as text"),
        ("short.txt", "p.npz", "p.npz does not end in .safetensors"),
        ("short.txt", "p.safetensors", "give one of at least 128"),
    ],
)
def test_what_is_wrong_is_one_line(tersor: Tersor, tmp_path: Path, text: str, out: str, reason: str) -> None:
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    model = save_text_model(tmp_path / "model")
    outcome = tersor("train-prompts", model, "--text", tmp_path / text, "-o", tmp_path / out)
    assert outcome.code == 2
    assert reason in outcome.error
    assert not (tmp_path / out).exists()
