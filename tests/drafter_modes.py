"""Every drafter that is found, in every mode that changes how it guesses."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from architectures import LLAMA, huggingface

from tersor.ir import archive
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.pipeline import run
from tersor.passes.registry import find_methods
from tersor.passes.speculate.drafter import Drafter

Mode = tuple[str, dict[str, Any]]
DRAFTERS = find_methods(Drafter)
PATH = "PATH"
# Beside its defaults, which are there for every drafter: the options of modes that guess in another way.
FURTHER: tuple[Mode, ...] = (
    ("easyspec", {"path": PATH}),
    ("model", {"exits": (1, 2)}),
    ("model", {"path": PATH}),
    ("self", {"exits": (1, 2)}),
    ("several", {"of": ("ngram", "recycle", "self", "ppd", "model")}),
    ("triforce", {"budget": 4, "chunk": 2, "refresh": 2}),
    ("triforce", {"budget": 4, "chunk": 2, "refresh": 2, "under": 1}),
)
MODES: tuple[Mode, ...] = (*((name, {}) for name in DRAFTERS), *FURTHER)


def said(mode: Mode) -> str:
    """The name of a mode in a test."""
    name, options = mode
    return ",".join([name, *(f"{option}={value}" for option, value in options.items())])


def made(mode: Mode, folder: Path) -> Drafter:
    """The drafter of a mode, whose second model is in ``folder``."""
    name, options = mode
    return DRAFTERS[name](
        **{option: str(folder) if value == PATH else value for option, value in options.items()}
    )


@cache
def cached(vocabulary: int, layers: int = 2) -> Program:
    """A small model of so many tokens, with a cache."""
    size = dict(LLAMA, vocab_size=vocabulary, num_hidden_layers=layers)
    program = capture(huggingface("LlamaConfig", "LlamaForCausalLM", **size)())
    return run(program, ["kv-cache"])[0]


def save_second_model(folder: Path, vocabulary: int) -> Path:
    """Write another model of the same vocabulary."""
    archive.save(cached(vocabulary, layers=3), folder)
    return folder
