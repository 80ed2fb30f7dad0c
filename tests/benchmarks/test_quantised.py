"""What the section on fewer bits says of runs whose times and tokens are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import quantised
from benchmarks.decoding_sides import Result
from benchmarks.peers import LLAMA, LLAMA_LOOKUP
from benchmarks.quantised import KINDS, PEER, guessed, missed, section
from examples.prompts import Prompt

SIDES = (PEER, "int8", guessed("int8"), "gguf", guessed("gguf"), LLAMA, LLAMA_LOOKUP)


def result(kind: str, *seconds: float) -> Result:
    """Ten tokens on every side."""
    return Result(
        Prompt(kind, [1, 2]),
        {side: [time] for side, time in zip(SIDES, seconds, strict=False)},
        {side: list(range(10)) for side in SIDES},
    )


GOOD = (12.0, 1.0, 0.5, 1.0, 0.5, 2.0, 1.0)


def test_ratios_are_geometric_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "read_bandwidth", lambda: 20e9)
    bench: Any = SimpleNamespace(
        new=10,
        sides=[SimpleNamespace(name=name) for name in SIDES],
        bytes=dict.fromkeys(KINDS, 300_000_000),
        losses=dict.fromkeys(KINDS, "+0.10% (standard error 0.05%)"),
    )
    results = [result("prose", *GOOD), result("code", 3.0, *GOOD[1:])]
    text = section(results, {PEER: 1.0, "int8": 0.4, LLAMA: 0.5}, bench, 1)
    assert "| prose | 0.8 | 10.0 | 20.0 | 10.0 | 20.0 | 5.0 | 10.0 |" in text
    assert "| int8 | 6.00 | 2.00 | 1.00 |" in text
    assert "| int8 + several | 12.00 | 4.00 | 2.00 |" in text
    assert "int8 300 MB, 15%" in text
    assert "Below what is asked: nothing." in text


def test_what_is_missed_is_named() -> None:
    slow = result("prose", 5.0, 1.0, 0.9, 1.0, 0.9, 1.0, 1.0)
    slow.tokens["gguf"] = [7]
    found = missed([slow], {PEER: 1.0, "int8": 0.6})
    assert [text.split(":")[0] for text in found] == [
        "int8 over transformers", "int8 + several over transformers", "int8 over llama.cpp",
        "int8 + several over llama.cpp", "int8 + several over llama.cpp lookup", "gguf over llama.cpp",
        "gguf + several over llama.cpp", "gguf + several over llama.cpp lookup", "time to first token",
        "gguf + several has other tokens than gguf on prose",
    ]  # fmt: skip
    assert missed([result("prose", 12.0, 1.0, 0.5)], {PEER: 1.0, "int8": 0.1}) == []
