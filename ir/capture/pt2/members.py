"""A ``.pt2`` archive made anew from what PyTorch may see of it.

``torch.export.load`` unpickles whatever member has the right name, in several formats.  So it never reads the file
itself: members are read once, held against what ``torch.export.save`` writes, and written into an archive in memory.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.pt2_archive import PT2ArchiveWriter

from ...errors import InputError
from . import strings
from .records import checked_payloads, checked_program

_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_TABLES = {
    "data/weights/model_weights_config.json": re.compile(r"data/weights/weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"data/constants/tensor_\d+"),
}
_VERSION = "archive_version"
_PLAIN = {"archive_format", "byteorder", ".data/version", ".data/serialization_id"}
_EXTRA = "extra/"


class _Refused(ValueError):
    """What is wrong, and with which member."""


def safe_copy(path: Path) -> io.BytesIO:
    """The archive at ``path`` without pickles and without strings that run.

    Raises:
        InputError: the file is no archive of ``torch.export.save``, or holds what reading it could run; the message
            names the member and the reason.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _rebuilt(archive, path.stat().st_size)
    except _Refused as error:
        raise InputError(
            f"{path}: {error}; nothing of it was run: export the model again and save it with torch.export.save of "
            f"torch {torch.__version__}"
        ) from error
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path} is no whole archive ({error}): fetch or export it again") from error


def _rebuilt(archive: zipfile.ZipFile, size: int) -> io.BytesIO:
    if not any(name.endswith("/" + _PROGRAM) for name in archive.namelist()):
        raise _Refused(f"this is no archive of torch.export.save: it holds no {_PROGRAM}")
    members = _members(archive, size)
    for name in (*_TABLES, _SAMPLES, _VERSION):
        if name not in members:
            raise _Refused(f"it holds no {name}")
    if "byteorder" in members and archive.read(members["byteorder"]) != sys.byteorder.encode():
        raise _Refused(f"byteorder is not this machine's, {sys.byteorder}")
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for table, payload in _TABLES.items():
            for name in filter(payload.fullmatch, members):
                writer.write_bytes(name, archive.read(members[name]))
            held = _read(table, archive.read(members[table]), checked_payloads)
            for key, entry in held["config"].items():
                _check_payload(table, key, entry, payload, members)
            writer.write_string(table, json.dumps(held))
        program = _read(_PROGRAM, archive.read(members[_PROGRAM]), checked_program)
        writer.write_string(_PROGRAM, json.dumps(program))
        writer.write_bytes(_SAMPLES, _plain_samples(archive.read(members[_SAMPLES])))
        writer.write_bytes(_VERSION, archive.read(members[_VERSION]))
    buffer.seek(0)
    return buffer


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Members by name below the archive's only folder."""
    members: dict[str, zipfile.ZipInfo] = {}
    roots, total = set(), 0
    for entry in archive.infolist():
        root, _, name = entry.filename.partition("/")
        roots.add(root)
        total += entry.file_size
        if name.startswith(("data/weights/", "data/constants/")) and not _known(name):
            raise _Refused(f"{entry.filename} may be a pickle, and torch.export.save writes plain tensors")
        if not _known(name) or len(roots) > 1:
            raise _Refused(f"{entry.filename} is nothing that torch.export.save writes")
        if name in members:
            raise _Refused(f"{entry.filename} comes twice")
        if entry.compress_type != zipfile.ZIP_STORED or total > size:
            raise _Refused(f"{entry.filename} is packed, and torch.export.save packs nothing")
        members[name] = entry
    return members


def _known(name: str) -> bool:
    return (
        name in (_PROGRAM, _SAMPLES, _VERSION, *_TABLES, *_PLAIN)
        or any(payload.fullmatch(name) for payload in _TABLES.values())
        or name.startswith(_EXTRA)
    )


def _read(name: str, data: bytes, reader: Any) -> Any:
    try:
        return reader(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Refused(f"{name}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error


def _check_payload(table: str, key: str, entry: Any, payload: re.Pattern[str], members: Any) -> None:
    """A tensor's entry must name plain bytes that are there."""
    if entry.get("use_pickle") is not False or entry.get("tensor_meta") is None:
        raise _Refused(f"{table} holds {key} as a pickle")
    name = f"{table.rpartition('/')[0]}/{entry.get('path_name')}"
    if name not in members or not payload.fullmatch(name):
        raise _Refused(f"{table} puts {key} into {name}, which is not there")
    sizes = entry["tensor_meta"].get("sizes", [])
    if not members[name].file_size and math.prod(size.get("as_int", 1) for size in sizes):
        raise _Refused(f"{name} is empty, and {table} says that {key} holds values")


def _plain_samples(data: bytes) -> bytes:
    """The sample inputs, written anew from tensors and plain values; none stay none."""
    if not data:
        return data
    try:
        found = torch.load(io.BytesIO(data), weights_only=True)
        _check_value(found)
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise _Refused(f"{_SAMPLES} holds sample inputs that are no plain tensors ({text})") from error
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return buffer.getvalue()


def _check_value(value: Any) -> None:
    if type(value) in (Tensor, nn.Parameter):
        if value.layout != torch.strided:
            raise ValueError(f"a tensor of layout {value.layout}")
    elif type(value) in (tuple, list):
        for part in value:
            _check_value(part)
    elif type(value) in (dict, OrderedDict):
        for key, part in value.items():
            if not isinstance(key, int | str):
                raise ValueError(f"a key of type {type(key).__name__}")
            _check_value(key)
            _check_value(part)
    elif type(value) is str:
        strings.plain(value)
    elif value is not None and type(value) not in (bool, int, float, complex):
        raise ValueError(f"a value of type {type(value).__name__}")
