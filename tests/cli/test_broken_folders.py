"""A hundred broken model folders: each gives one line, exit code 2, and no output, whatever is broken."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
COUNT = 100

Mutation = Callable[[random.Random, Path], None]


def truncated_weights(source: random.Random, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(
        data[: source.choice((0, 1, 7, 8, 9, len(data) - 1, source.randrange(len(data))))]
    )


def weights_with_more_behind(source: random.Random, folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as stream:
        stream.write(bytes(source.randrange(1, 100)))


def damaged_header(source: random.Random, folder: Path) -> None:
    """A byte of the tensors' names, types, shapes or offsets is another."""
    data = bytearray((folder / WEIGHTS).read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    first = data.index(b"}", 8) + 1  # behind the metadata, in which anything may stand
    place = source.randrange(first, 8 + len(data[8 : 8 + length].rstrip()))
    data[place] ^= 1 << source.randrange(7)
    (folder / WEIGHTS).write_bytes(data)


def wrong_header_length(source: random.Random, folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    length = source.choice((0, 1, 2**63, 2**40, len(data), source.randrange(10, 1000)))
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])


def garbage_weights(source: random.Random, folder: Path) -> None:
    content = (b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", source.randbytes(500))
    (folder / WEIGHTS).write_bytes(source.choice(content))


def pickle_for_safetensors(source: random.Random, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / source.choice(("pytorch_model.bin", WEIGHTS)))


def missing_file(source: random.Random, folder: Path) -> None:
    (folder / source.choice((WEIGHTS, CONFIG))).unlink()


def empty_folder(source: random.Random, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def folder_for_file(source: random.Random, folder: Path) -> None:
    path = folder / source.choice((WEIGHTS, CONFIG))
    path.unlink()
    path.mkdir()


def edit_tensors(change: Callable[[random.Random, dict[str, torch.Tensor], str], None]) -> Mutation:
    def mutate(source: random.Random, folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(source, tensors, source.choice(sorted(tensors)))
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    mutate.__name__ = change.__name__
    return mutate


@edit_tensors
def not_finite(source: random.Random, tensors: dict[str, torch.Tensor], name: str) -> None:
    flat = tensors[name].reshape(-1)
    flat[source.randrange(flat.numel())] = source.choice((torch.nan, torch.inf, -torch.inf))


@edit_tensors
def wrong_shape(source: random.Random, tensors: dict[str, torch.Tensor], name: str) -> None:
    shape = list(tensors[name].shape)
    shape[source.randrange(len(shape))] += source.choice((-1, 1, 16))
    tensors[name] = torch.zeros(shape)


@edit_tensors
def missing_tensor(source: random.Random, tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


@edit_tensors
def renamed_tensor(source: random.Random, tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.replace("e", "x", 1)] = tensors.pop(name)


@edit_tensors
def wrong_dtype(source: random.Random, tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].to(source.choice((torch.int64, torch.bool, torch.uint8)))


def truncated_config(source: random.Random, folder: Path) -> None:
    text = (folder / CONFIG).read_text().rstrip()
    (folder / CONFIG).write_text(text[: source.randrange(len(text))])


def garbage_config(source: random.Random, folder: Path) -> None:
    content = (
        b"null",
        b"[]",
        b"3",
        b'"bert"',
        b"\xff\xfe\x00",
        b"{}",
        b"[" * 100_000,
        b"{'model_type': 'bert'}",
        b"NaN",
    )
    (folder / CONFIG).write_bytes(source.choice(content))


def wrong_config(source: random.Random, folder: Path) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"hidden_size": 32}, {"hidden_size": "wide"}, {"hidden_size": -16}, {"hidden_size": None}, {"hidden_size": 0},
        {"hidden_size": 10**12}, {"num_attention_heads": 3}, {"num_attention_heads": 0}, {"num_hidden_layers": 3},
        {"num_hidden_layers": "two"}, {"vocab_size": 51}, {"vocab_size": [50]}, {"max_position_embeddings": 31},
        {"hidden_act": "no_such_function"}, {"intermediate_size": 1.5}, {"model_type": "no_such_model"},
        {"model_type": None}, {"model_type": "gpt2"}, {"architectures": ["NoSuchModel"]},
        {"architectures": "BertModel"}, {"architectures": [3]}, {"architectures": ["PretrainedConfig"]},
        {"architectures": ["GPT2Model"]},
    )  # fmt: skip
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | source.choice(changes)))


def broken_shards(source: random.Random, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    places = {name: file for file, part in halves.items() for name in part}
    index: Any = {"metadata": {"total_size": 1}, "weight_map": places}
    kind = source.randrange(5)
    if kind == 0:
        (folder / source.choice(list(halves))).unlink()
    elif kind == 1:
        places[source.choice(names)] = source.choice(
            ("model-00003-of-00002.safetensors", "../elsewhere.safetensors")
        )
    elif kind == 2:
        index = source.choice(([], None, {"weight_map": 3}, {}, {"weight_map": {}}))
    elif kind == 3:
        shard = folder / source.choice(list(halves))
        shard.write_bytes(shard.read_bytes()[:-10])
    (folder / INDEX).write_text(json.dumps(index)[: -3 if kind == 4 else None])


MUTATIONS: tuple[Mutation, ...] = (
    truncated_weights, weights_with_more_behind, damaged_header, wrong_header_length, garbage_weights,
    pickle_for_safetensors, missing_file, empty_folder, folder_for_file, not_finite, wrong_shape, missing_tensor,
    renamed_tensor, wrong_dtype, truncated_config, garbage_config, wrong_config, broken_shards,
)  # fmt: skip
# Those with many ways to go wrong are drawn more often.
WEIGHTED = (
    *MUTATIONS,
    *[truncated_weights] * 3,
    *[damaged_header] * 3,
    *[wrong_config] * 8,
    *[broken_shards] * 4,
)


def cases() -> list[Any]:
    """Every mutation once, for the quick tests, then drawn ones."""
    source = random.Random(0)
    drawn = [*MUTATIONS, *(source.choice(WEIGHTED) for _ in range(COUNT - len(MUTATIONS)))]
    return [
        pytest.param(
            mutation,
            seed,
            id=f"{seed}-{mutation.__name__}",
            marks=[pytest.mark.slow] * (seed >= len(MUTATIONS)),
        )
        for seed, mutation in enumerate(drawn)
    ]


@pytest.mark.parametrize(("mutate", "seed"), cases())
def test_a_broken_folder_is_one_line_and_no_output(
    tersor: Any, model_folder: Path, tmp_path: Path, mutate: Mutation, seed: int
) -> None:
    broken = Path(shutil.copytree(model_folder, tmp_path / "broken"))
    mutate(random.Random(seed), broken)
    outcome = tersor("convert", broken, "--target", "torch", "-o", tmp_path / "out")
    assert outcome.code == 2, outcome
    assert str(broken) in outcome.error
    assert len(outcome.error) < 700
    assert outcome.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_folder_that_is_broken_was_whole(tersor: Any, model_folder: Path, tmp_path: Path) -> None:
    assert tersor("convert", model_folder, "--target", "torch", "-o", tmp_path / "out").code == 0
