"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .ir.errors import InputError

MANIFEST = "manifest.json"
KIND = "tersor-artifact"


def check_output(out: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that may be written: absent, empty, or an artifact to be replaced.

    Raises:
        InputError: something else is there, or the place cannot be written to.
    """
    path = Path(out).resolve()
    if path.exists():
        if not path.is_dir():
            raise InputError(f"{out} is a file: give the name of a folder to write")
        if any(path.iterdir()) and not is_artifact(path):
            raise InputError(
                f"{out} holds files that Tersor did not write: give another name, or empty the folder"
            )
    _check_writable(path.parent, str(out))
    return path


def check_output_file(out: str | os.PathLike[str]) -> Path:
    """The absolute path of a file that may be written.

    Raises:
        InputError: it is a folder, or the place cannot be written to.
    """
    path = Path(out).resolve()
    if path.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file to write")
    _check_writable(path.parent, str(out))
    return path


def is_artifact(path: Path) -> bool:
    """Whether ``path`` is a folder that says of itself that Tersor wrote it."""
    try:
        manifest: Any = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends, and vanishes when the block fails.

    An artifact that is already there stays in place until then.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    fresh, old = out.with_name(f".{out.name}.{mark}.new"), out.with_name(f".{out.name}.{mark}.old")
    fresh.mkdir()
    try:
        yield fresh
        check_output(out)
        if out.exists():
            out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_writable(folder: Path, asked: str) -> None:
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write {asked}: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"cannot write {asked}: no permission to write in {nearest}")
