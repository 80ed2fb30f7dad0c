"""A tiny model folder, an artifact made from it by the command, and a way to run commands in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tersor.cli import app


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line that a failed command may print."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("error: "), self.stderr
        return lines[0].removeprefix("error: ")


Tersor = Callable[..., Outcome]


def run(*arguments: str | Path) -> Outcome:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def tersor() -> Tersor:
    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 2 layers and 16 channels, as `save_pretrained` writes it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    folder = tmp_path_factory.mktemp("model") / "bert"
    BertModel(config, add_pooling_layer=True).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inputs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inputs") / "inputs.safetensors"
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, file)
    return file


@pytest.fixture(scope="session")
def artifact(model_folder: Path, inputs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for the torch target with token dropping; not to be changed."""
    out = tmp_path_factory.mktemp("artifact") / "out"
    outcome = run(
        "convert", model_folder, "-p", "token-drop:method=norm,keep=0.6,layers=0", "--target", "torch", "-o", out,
        "--calibration", inputs_file, "--no-require-speedup",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    return out
