"""The certificate: what each pass promised, what was measured on which inputs, and hashes of all that it rests on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from .calibration import Batch, batches_hash
from .ir.archive import weights_hash
from .ir.errors import ArtifactError
from .ir.program import Program
from .json_shape import Each, check_shape
from .passes.deviation import Deviation
from .passes.report import Report
from .runtime.machine import machine_facts
from .saved_report import read_deviation

CERTIFICATE = "certificate.json"
FORMAT = 1
_CHUNK = 1 << 22
_SHAPE = {
    "model": {"weights_sha256": str},
    "program": {"weights_sha256": str},
    "inputs": {"kind": str, "samples": int, "sha256": str},
    "passes": [dict],
    "measured": dict,
    "files": Each({"bytes": int, "sha256": str}),
}


def write_certificate(
    folder: Path,
    *,
    source: Program,
    program: Program,
    report: Report,
    measured: Deviation,
    samples: Sequence[Batch],
    calibrated: bool,
) -> None:
    """Certify every file that lies in ``folder``.

    Args:
        source: the model as it was captured.  program: the one that ``folder`` holds.
        measured: deviation of what was saved from ``source``, on ``samples``.
        calibrated: whether the samples are the user's and not the ones that capture made up.
    """
    data: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "family": source.facts.family,
            "source": source.facts.source,
            "weights_sha256": weights_hash(source.weights),
        },
        "program": {"weights_sha256": weights_hash(program.weights)},
        "inputs": {
            "kind": "calibration" if calibrated else "example",
            "samples": len(samples),
            "sha256": batches_hash(samples),
        },
        "passes": report.to_json()["steps"],
        "measured": _finite(measured.to_json()),
        "machine": machine_facts(bandwidth=False),
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }
    data["seal"] = _seal(data)
    (folder / CERTIFICATE).write_text(json.dumps(data, indent=1), encoding="utf-8")


def read_certificate(folder: Path) -> dict[str, Any]:
    """The certificate of an artifact, with all that its readers rely on in place.

    Raises:
        ArtifactError: it is missing, damaged, altered, of another version, or names files outside ``folder``.
    """
    path = folder / CERTIFICATE
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        check_shape(data, {"seal": str, "format": int})
        seal, version = data.pop("seal"), data["format"]
        if seal == _seal(data) and version == FORMAT:
            check_shape(data, _SHAPE)
            read_deviation(data["measured"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ArtifactError(f"{path} is missing or damaged ({reason}): convert the model again") from error
    if seal != _seal(data):
        raise ArtifactError(f"{path} was altered after it was written: convert the model again")
    if version != FORMAT:
        raise ArtifactError(f"{path} has format {version!r}, this Tersor reads {FORMAT}")
    for name in data["files"]:
        if not _lies_inside(folder, name):
            raise ArtifactError(
                f"{path} names {name!r}, which is no file inside {folder}: do not use this artifact"
            )
    return data


def uncertified_files(folder: Path) -> list[str]:
    """Names of all that lies in an artifact's folder and is not the artifact's.

    Raises:
        ArtifactError: the certificate, which says what is, cannot be read.
    """
    known = {CERTIFICATE, *read_certificate(folder)["files"]}
    found = []
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        links = [name for name in folders if (inside / name).is_symlink()]
        empty = [] if folders or files or inside == folder else [inside]
        found += [
            path.relative_to(folder).as_posix() for path in (*map(inside.joinpath, files + links), *empty)
        ]
    return sorted(set(found) - known)


def changed_files(folder: Path, certificate: Mapping[str, Any]) -> list[str]:
    """What is wrong with the certified files, one text a file."""
    found = []
    for name, recorded in certificate["files"].items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != recorded["bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {recorded['bytes']}")
        elif file_hash(path) != recorded["sha256"]:
            found.append(f"{name} does not have the content it was certified with")
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _lies_inside(folder: Path, name: str) -> bool:
    """Whether ``name`` is a plain relative path below ``folder``, and no link on it leads out again."""
    pure = PurePosixPath(name)
    if not name.isprintable() or str(pure) != name or pure.is_absolute() or ".." in pure.parts:
        return False
    if name in (".", CERTIFICATE):
        return False
    try:
        return (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _seal(data: Mapping[str, Any]) -> str:
    """A hash of the certificate's own content: it shows damage; it is no signature."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _finite(data: Any) -> Any:
    """Numbers that JSON has no word for as texts, which ``float`` reads back."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return str(data)
    return data
