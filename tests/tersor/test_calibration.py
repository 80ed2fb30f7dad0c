"""Calibration inputs in every form a caller may have them, and through a file unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tersor import ArtifactError, InputError, Program
from tersor.calibration import (
    batches_hash,
    bind_batches,
    list_batches,
    load_batches,
    read_batches,
    save_batches,
)

x, y = torch.arange(6.0).reshape(2, 3), torch.tensor([[True], [False]])


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"x": x}, 1),
        (x, 1),
        ((x, y), 1),
        ([{"x": x}, {"x": x}], 2),
        ([(x, y)], 1),
        (iter([{"x": x}] * 3), 3),
        ([x], 1),
    ],
)
def test_one_batch_or_many(given: Any, count: int) -> None:
    assert len(list_batches(given)) == count


def test_batches_survive_a_file(tmp_path: Path) -> None:
    rows = torch.arange(12).reshape(4, 3)
    batches = [{"x": rows[:2], "mask": y}, {"x": rows.t(), "mask": torch.tensor(1.5)}]
    save_batches(batches, tmp_path / "inputs.safetensors")
    loaded = load_batches(tmp_path / "inputs.safetensors")
    assert batches_hash(loaded) == batches_hash(batches)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(batches, loaded, strict=True) for k in a)


def test_the_hash_sees_values_names_types_and_order() -> None:
    base = [{"x": x}, {"x": x + 1}]
    others: list[Any] = [
        [{"x": x}, {"x": x + 2}],
        [{"z": x}, {"x": x + 1}],
        base[::-1],
        base[:1],
        [{"x": x.double()}, {"x": x + 1}],
        [{"x": x.reshape(3, 2)}, {"x": x + 1}],
    ]
    assert len({batches_hash(b) for b in [base, *others]}) == 1 + len(others)


def test_a_users_file_is_one_batch_or_numbered_ones(tmp_path: Path) -> None:
    save_file({"input_ids": x}, tmp_path / "one.safetensors")
    np.savez(tmp_path / "two.npz", **{"0:input_ids": x.numpy(), "1:input_ids": x.numpy() + 1})
    assert [list(batch) for batch in read_batches(tmp_path / "one.safetensors")] == [["input_ids"]]
    first, second = read_batches(tmp_path / "two.npz")
    assert torch.equal(second["input_ids"], first["input_ids"] + 1)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pt", lambda p: torch.save({"x": x}, p), "safetensors or .npz"),
        ("a.safetensors", lambda p: None, "no file"),
        ("a.safetensors", lambda p: p.write_bytes(b"\x10"), "holds no inputs"),
        ("a.npz", lambda p: p.write_bytes(b"PK nonsense"), "holds no inputs: it is no .npz archive"),
        ("a.npz", lambda p: np.savez(p, x=np.array([{}], dtype=object)), "holds no inputs"),
        ("a.safetensors", lambda p: save_file({}, p), "empty"),
        ("a.safetensors", lambda p: save_file({"0:x": x, "z": x + 1}, p), "'z' names no batch"),
        ("a.safetensors", lambda p: save_file({"0:x": x, "2:x": x + 1}, p), "without gaps"),
    ],
)
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, name: str, write: Any, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        read_batches(tmp_path / name)


def test_a_damaged_file_of_an_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing or damaged"):
        load_batches(tmp_path / "calibration.safetensors")


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": "a", "attention_mask": [[1]]},
        {"input_ids": [[1, 2], [3]], "attention_mask": [[1]]},
        ("a", [[1]]),
        ["a", [[1]]],
    ],
)
def test_a_batch_of_what_is_no_tensor_is_named(program: Program, batch: Any) -> None:
    with pytest.raises(InputError, match=r"batch 1 of calibration: input 'input_ids' is a .*: give a tensor"):
        bind_batches(program, [program.example_inputs, batch])
