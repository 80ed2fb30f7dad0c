"""Archives of ``torch.export.save`` to read, and to change as an attacker would."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Small(nn.Module):
    """Tied weights, a buffer, constants, a module with a dash in its name, a branch on a size and nested inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.register_buffer("shift", torch.ones(4))
        self.register_buffer("nothing", torch.zeros(0))
        self.constant = torch.arange(4.0)
        self.narrow = torch.ones(3, dtype=torch.bfloat16)
        self.named = nn.ModuleDict({"a-b": nn.Linear(4, 4)})

    def forward(self, x: Tensor, pair: dict[str, Tensor], *, scale: Tensor) -> dict[str, Tensor]:
        y = self.tied(self.first(x)) + self.shift * self.constant + self.narrow.sum() + self.nothing.sum()
        if x.shape[1] % 2 == 0:
            y = y + 1
        with torch.no_grad():
            y = self.named["a-b"](y) * 2
        y = y[:, : 3 * x.shape[1] // 4] * scale
        return {"y": y.reshape(y.shape[0] * y.shape[1], -1), "z": pair["left"] + pair["right"][1:]}


def save(model: nn.Module, args: tuple[Any, ...], kwargs: Any, path: Path, **options: Any) -> Path:
    with torch.no_grad():
        exported = torch.export.export(model.eval(), args, kwargs, **options)
    torch.export.save(exported, path)
    return path


def save_small(path: Path) -> Path:
    """An archive of :class:`Small` with a range and a derived dimension."""
    rows, left = Dim("rows", max=64), Dim("left", min=2, max=50)
    pair = {"left": torch.randn(5), "right": torch.randn(6)}
    shapes = {"x": {0: rows, 1: Dim.AUTO}, "pair": {"left": {0: left}, "right": {0: left + 1}}, "scale": None}
    return save(Small(), (torch.randn(3, 8, 4), pair), {"scale": torch.ones(4)}, path, dynamic_shapes=shapes)


def members(archive: Path) -> dict[str, bytes]:
    """The archive's files, by name below its only folder."""
    with zipfile.ZipFile(archive) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def write(path: Path, files: Mapping[str, bytes] | list[tuple[str, bytes]], root: str = "small/") -> Path:
    """An archive of ``files``, which may hold a name twice."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            file.writestr(root + name, data)
    return path


def edited(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """JSON after ``change`` worked on it in place."""
    held = json.loads(data)
    change(held)
    return json.dumps(held).encode()


class Touches:
    """Unpickled, it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
