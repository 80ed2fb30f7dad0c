"""Read safetensors files, and say what is wrong with those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, each with a readable header.

    Raises:
        InputError: there are none, only pickled weights, a shard is missing, or a file is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        held = read_json(index).get("weight_map")
        names = sorted({str(name) for name in held.values()}) if isinstance(held, dict) else []
        if not names:
            raise InputError(f"{index} names no weight files: it holds no weight_map; fetch the folder again")
        for name in names:
            if Path(name).name != name:
                raise InputError(f"{index} names {name}, which lies outside the folder")
        files = [folder / name for name in names]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise InputError(
                f"{folder / pickled[0]} holds pickled weights, which can run code when they are read: convert them to "
                "model.safetensors where you trust them (safetensors.torch.save_file of the state dict)"
            )
        raise InputError(f"{folder} holds no weights: expected model.safetensors beside config.json")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is named by {index.name} and missing: fetch the folder again")
        check_header(file)
    return files


def check_header(file: Path) -> None:
    """Raise InputError unless ``file`` is a whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    start = file.open("rb").read(4) if file.is_file() else b""
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        raise InputError(
            f"{file} is a pickle by another name, which can run code when it is read: convert it to safetensors where "
            "you trust it"
        )
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is no whole safetensors file ({error}): fetch it again") from error


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file."""
    from safetensors.torch import load_file

    check_header(file)
    return dict(load_file(file))


def stored_in(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and type (as safetensors writes it: ``F32``, ``I64``) of every tensor in a file, from its header."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
        return {name: (list(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}


def check_finite(parameters: Iterable[tuple[str, nn.Parameter | Tensor]], where: Path) -> None:
    """Raise InputError for the first weight that is not a number or infinite."""
    for name, value in parameters:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise InputError(
                f"{where}: weight {name} has {bad} values that are NaN or infinite: the file is damaged or training "
                "diverged; every output would be NaN"
            )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.  Raises InputError when it is anything else."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file} is no readable JSON ({error})") from error
    if not isinstance(data, dict):
        raise InputError(f"{file} holds a {type(data).__name__} where an object was expected")
    return data
