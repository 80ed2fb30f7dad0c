"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .certificate import uncertified_files
from .ir.errors import ArtifactError, InputError

MANIFEST = "manifest.json"
KIND = "tersor-artifact"

_SHOWN = 3
# Hexadecimal digits in the name of what is not finished.
_RANDOM = 8
# Seconds.
_LEFT_AFTER = 60
_unfinished: set[Path] = set()
_moving = threading.Lock()


def check_output(out: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that may be written: absent, empty, or an artifact and nothing else.

    Raises:
        InputError: something else is there, or the place cannot be written to.
    """
    path = _absolute(out)
    with _writing(out):
        if path.exists():
            if not path.is_dir():
                raise InputError(f"{out} is a file: give the name of a folder to write")
            _check_replaceable(path, out)
        _check_writable(path, out)
    return path


def check_output_file(out: str | os.PathLike[str]) -> Path:
    """The absolute path of a file that may be written.

    Raises:
        InputError: it is a folder or in an artifact, or the place cannot be written to.
    """
    path = _absolute(out)
    with _writing(out):
        if path.is_dir():
            raise InputError(f"{out} is a folder: give the name of a file to write")
        artifact = next((parent for parent in path.parents if is_artifact(parent)), None)
        if artifact is not None:
            raise InputError(
                f"{out} is in the artifact {artifact}, whose files are certified: give a place beside it"
            )
        _check_writable(path, out)
    return path


def is_artifact(path: Path) -> bool:
    """Whether ``path`` is a folder that says of itself that Tersor wrote it."""
    try:
        manifest: Any = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("kind") == KIND


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends, and vanishes when the block fails.

    An artifact that is already there stays in place until then.

    Raises:
        InputError: the file system refuses, as when the disk is full.
    """
    with scratch_folder(out) as fresh:
        yield fresh
        check_output(out)
        old = _hidden(out)
        try:
            with _moving, _held(out):
                if out.exists():
                    out.rename(old)
                fresh.rename(out)
        finally:
            # Whatever came between the two, a signal included, one of them has to stand there.
            if old.exists() and not out.exists():
                old.rename(out)
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """A hidden folder in which to make ``beside``, on the same file system; it is gone when the block ends.

    Folders above that had to be made are taken away again when nothing was left in them.

    Raises:
        InputError: the file system refuses, in the block too.
    """
    folder = _hidden(beside)
    made = [parent for parent in folder.parents if not parent.exists()]
    _unfinished.add(folder)
    with _writing(beside):
        _remove_left_over(beside)
        try:
            folder.mkdir(parents=True)
            with _held(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _unfinished.discard(folder)
            # Only those that stayed empty go.
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def abandon_unfinished() -> None:
    """Remove what other threads are writing, and keep them from giving it its name: the process is to end now."""
    _moving.acquire(timeout=1)
    for folder in list(_unfinished):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """A lock that ends with the process, whatever ends it; gives whether nobody else has it."""
    try:
        import fcntl  # Not everywhere.

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _remove_left_over(path: Path) -> None:
    """Remove what processes that were killed while they made ``path`` have left beside it."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * _RANDOM}"):
        # One that was made a moment ago may not be locked yet.
        with suppress(OSError), _held(folder) as left:
            if left and time.time() - folder.stat().st_mtime > _LEFT_AFTER:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(asked: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {asked}: {getattr(error, 'strerror', None) or error}") from error


def _hidden(path: Path) -> Path:
    """A name beside ``path`` that nothing has; of the length of every other, so that one too long is found early."""
    return path.with_name(f".{path.name}.{secrets.token_hex(_RANDOM // 2)}")


def _absolute(out: str | os.PathLike[str]) -> Path:
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"{out!r} names no place to write: give a path")
    if not os.fspath(out):
        raise InputError("the name of the place to write is empty")
    try:
        return Path(out).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot write {os.fspath(out)!r}: {error}") from error


def _check_replaceable(path: Path, asked: str | os.PathLike[str]) -> None:
    """Raise InputError where a folder cannot give way to a new one without loss."""
    if any(path.iterdir()):
        if not is_artifact(path):
            raise InputError(
                f"{asked} holds files that Tersor did not write: give another name, or empty the folder"
            )
        try:
            others = uncertified_files(path)
        except ArtifactError as error:
            raise InputError(
                f"{asked} holds an artifact that does not say which files are its own: give another name, or "
                f"empty the folder ({error})"
            ) from error
        if others:
            shown = ", ".join(others[:_SHOWN])
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            raise InputError(
                f"{asked} holds an artifact and files that are not part of it ({shown}{more}): move them away, or "
                "give another name"
            )
    if path.is_mount() or Path.cwd().is_relative_to(path):
        what = "a mount point" if path.is_mount() else "the folder you are in"
        raise InputError(f"{asked} is {what}, which cannot be replaced: give the name of a folder inside it")


def _check_writable(path: Path, asked: str | os.PathLike[str]) -> None:
    """Raise unless a folder can be made where ``path`` is to be, by making one: rights alone do not tell."""
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"cannot write {asked}: {nearest} is a file")
    probe = _hidden(nearest / path.name)
    try:
        probe.mkdir()
    except PermissionError as error:
        raise InputError(f"cannot write {asked}: no permission to write in {nearest}") from error
    except OSError as error:
        raise InputError(f"cannot write {asked}: {nearest} takes no new files ({error.strerror})") from error
    probe.rmdir()
