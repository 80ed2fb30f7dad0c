"""Calibration inputs: the forms a caller may hand over, and the file that an artifact keeps them in."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .ir.errors import ArtifactError, InputError
from .ir.program import Program

Batch = dict[str, Tensor]
_KEY = re.compile(r"(\d+):(.+)")


def list_batches(calibration: Any) -> list[Any]:
    """Batches one by one: a mapping, a tensor or a tuple of positional inputs is one batch, anything else many.

    Raises:
        InputError: there is no batch, or one is neither a mapping, a tensor nor a tuple.
    """
    if isinstance(calibration, Mapping | Tensor | tuple):
        batches: list[Any] = [calibration]
    elif isinstance(calibration, Iterable) and not isinstance(calibration, str | bytes):
        batches = list(calibration)
    else:
        raise InputError(
            f"calibration is a {type(calibration).__name__}: pass a mapping of names to tensors, or a list of them"
        )
    if not batches:
        raise InputError("calibration holds no batch: leave it out, or give at least one")
    for number, batch in enumerate(batches):
        if not isinstance(batch, Mapping | Tensor | tuple | list):
            raise InputError(
                f"batch {number} of calibration is a {type(batch).__name__}: pass a mapping of input names to tensors"
            )
    return batches


def bind_batches(program: Program, batches: Sequence[Any]) -> list[Batch]:
    """Every batch as the program takes it.

    Raises:
        InputError: an input does not fit; the message says in which batch.
    """
    bound = []
    for number, batch in enumerate(batches):
        try:
            bound.append(bind(program, batch))
        except InputError as error:
            raise InputError(f"batch {number} of calibration: {error}") from None
    return bound


def bind(program: Program, batch: Any) -> Batch:
    """One batch in any of the forms of :func:`list_batches`."""
    return program.bind(*((batch,) if isinstance(batch, Mapping | Tensor) else batch))


def device_of(batch: Any) -> torch.device:
    """Where a batch was given, in any of those forms; the CPU where it holds no tensor."""
    values = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, Mapping) else batch
    return next((value.device for value in values if isinstance(value, Tensor)), torch.device("cpu"))


def save_batches(batches: Sequence[Batch], path: Path) -> None:
    """Write batches to one safetensors file."""
    tensors = {
        # Rows of one tensor may be views of another, which safetensors does not take.
        f"{number}:{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for number, batch in enumerate(batches)
        for name, tensor in batch.items()
    }
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, {"format": "pt"})
    # safetensors makes files that only their owner can read.
    path.chmod(mode)


def load_batches(path: Path) -> list[Batch]:
    """Read what :func:`save_batches` wrote.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        return _grouped(_read_safetensors(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}") from error


def read_batches(file: str | os.PathLike[str]) -> list[Batch]:
    """Batches from a user's file: ``.safetensors`` or ``.npz``, by input name, or ``N:name`` for batch N.

    Raises:
        InputError: the file is missing, damaged, of another kind, or its names are not of that form.
    """
    path = Path(file)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    if path.suffix not in readers:
        raise InputError(f"{os.fspath(file)!r}: inputs come as {' or '.join(readers)}")
    if not path.is_file():
        raise InputError(f"there is no file {file}")
    try:
        return _grouped(readers[path.suffix](path))
    except (OSError, SafetensorError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} holds no inputs: {' '.join(str(error).split())}") from error


def _read_safetensors(path: Path) -> Batch:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _read_npz(path: Path) -> Batch:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz archive")
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def _grouped(tensors: Batch) -> list[Batch]:
    """Tensors called ``N:name`` by their batch; without numbers all are one batch."""
    matches = {key: _KEY.fullmatch(key) for key in tensors}
    if tensors and not any(matches.values()):
        return [tensors]
    batches: dict[int, Batch] = {}
    for key, match in matches.items():
        if match is None:
            raise ValueError(f"{key!r} names no batch, as other tensors do")
        batches.setdefault(int(match[1]), {})[match[2]] = tensors[key]
    if sorted(batches) != list(range(len(batches))) or not batches:
        raise ValueError("batches are not numbered from 0 without gaps" if batches else "it is empty")
    return [batches[number] for number in range(len(batches))]


def batches_hash(batches: Sequence[Batch]) -> str:
    """SHA-256 over every input's batch, name, dtype, shape and values."""
    digest = hashlib.sha256()
    for number, batch in enumerate(batches):
        for name in sorted(batch):
            tensor = batch[name].detach().cpu().contiguous()
            digest.update(f"{number}:{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
