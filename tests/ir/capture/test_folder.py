"""A model folder is read without running code, and what is wrong with it is one clear error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tersor.ir.capture import capture
from tersor.ir.capture.folder import tokenizer_files_of
from tersor.ir.errors import InputError

WEIGHT = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bert")
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def config(**values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(data | values))

    return edit


def truncate(size: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(size)

    return edit


def shards(names: list[str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return edit


BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "no readable JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "holds a list"),
    "config is binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "no readable JSON"),
    "unknown model type": (config(model_type="nope"), "model_type 'nope'"),
    "no model type": (config(model_type=None), "model_type None"),
    "unknown architecture": (config(architectures=["Nope"]), "architecture 'Nope'"),
    "architecture is no model": (config(architectures=["BertConfig"]), "architecture 'BertConfig'"),
    "heads do not divide": (config(num_attention_heads=3), "describes no model"),
    "a size is a word": (config(hidden_size="big"), "describes no model"),
    "a size is negative": (config(vocab_size=-1), "describes no model"),
    "a size is absurd": (config(vocab_size=10**12), "has shape"),
    "another width": (config(hidden_size=32), "has shape"),
    "more layers than weights": (config(num_hidden_layers=2), "weights are missing"),
    "config is nested without end": (lambda f: (f / "config.json").write_text("[" * 100_000), "no readable JSON"),
    "layers without end": (config(num_hidden_layers=10**9), "says 1000000000 layers"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin holds pickled",
    ),
    "a pickle by another name": (lambda f: torch.save({}, f / "model.safetensors"), "is a pickle"),
    "weights cut short": (truncate(2000), "no whole safetensors"),
    "empty weights": (truncate(0), "no whole safetensors"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("hello there"), "no whole safetensors"),
    "a weight is missing": (tensors(lambda t: t.pop(WEIGHT)), f"1 weights are missing, the first is {WEIGHT}"),
    "a weight of another shape": (tensors(lambda t: t.update({WEIGHT: torch.zeros(8, 16)})), r"has shape \[8, 16\]"),
    "a weight is NaN": (tensors(lambda t: t[WEIGHT].fill_(float("nan"))), f"{WEIGHT} has 256 values"),
    "a weight is infinite": (tensors(lambda t: t[WEIGHT][0].fill_(float("inf"))), f"{WEIGHT} has 16 values"),
    "a shard is missing": (shards(["model.safetensors", "model-2.safetensors"]), "model-2.safetensors is named by"),
    "the index is empty": (shards([]), "names no weight files"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_folder_is_one_error(case, sound, tmp_path):
    edit, message = BROKEN[case]
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    edit(folder)
    with pytest.raises(InputError, match=message) as caught:
        capture(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sound_folder_becomes_a_program_that_knows_where_it_came_from(sound):
    program = capture(str(sound))
    assert program.facts.source == str(sound)
    assert program.facts.family == "bert"
    assert program.facts.captured_by == "huggingface"
    assert program.facts.config["hidden_size"] == 16
    assert program.facts.tokenizer_files == {"vocab.txt": str(sound / "vocab.txt")}
    assert program.facts.deviation == 0.0


def test_a_model_that_was_loaded_from_a_folder_has_the_tokenizer_there(sound, tmp_path, monkeypatch):
    import huggingface_hub
    from transformers import BertModel

    model = BertModel.from_pretrained(sound).eval()
    ids = torch.arange(12).view(2, 6)
    assert capture(model, {"input_ids": ids}).facts.tokenizer_files == {"vocab.txt": str(sound / "vocab.txt")}

    # From a hub: what its cache holds.
    cached = {"vocab.txt": "there/vocab.txt", "tokenizer.json": None}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda repository, file, revision: cached.get(file)
    )
    model.name_or_path = "somebody/bert"
    assert tokenizer_files_of(model) == {"vocab.txt": "there/vocab.txt"}
    monkeypatch.undo()
    for name in ("", "somebody/bert", str(tmp_path / "gone"), "no: name"):
        model.name_or_path = name
        assert tokenizer_files_of(model) == {}


def test_an_index_that_leads_outside_the_folder_is_refused(sound, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(sound, folder)
    shutil.copy(sound / "model.safetensors", tmp_path / "elsewhere.safetensors")
    shards(["../elsewhere.safetensors"])(folder)
    with pytest.raises(InputError, match="outside"):
        capture(folder)
