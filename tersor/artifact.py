"""The folder that a converted model is saved to.

manifest.json                       format, target, inputs, outputs, dimensions, output structure
certificate.json                    what was promised and measured, and a hash of every other file
report.json                         the pipeline's report
program.json, program.safetensors   the rewritten Program
calibration.safetensors             the inputs on which it was measured
...                                 the target's own files, such as model.onnx
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .agreement import measure
from .calibration import Batch, save_batches
from .certificate import changed_files, read_certificate, write_certificate
from .codegen.target import Executable, find_target, target_names
from .folders import KIND, MANIFEST, check_output, whole_folder
from .ir import archive
from .ir.errors import ArtifactError, InputError
from .ir.program import Program
from .ir.structure import Structure
from .lowering import target_with_options
from .passes.deviation import Reference
from .passes.report import Report
from .runtime.session import Session
from .saved_report import read_report

FORMAT = 1
REPORT, SAMPLES = "report.json", "calibration.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What is needed to run an artifact without reading its Program."""

    target: str
    options: Mapping[str, Any]
    structure: Structure
    ranges: Mapping[str, tuple[int, int | None]]
    calibrated: bool


def write(
    out: Path,
    *,
    source: Program,
    program: Program,
    executable: Executable,
    report: Report,
    samples: list[Batch],
    manifest: Manifest,
) -> None:
    """Write an artifact; it appears under its name when it is complete and has been read back and measured.

    Raises:
        InputError: the place is taken or cannot be written to.
        ArtifactError: what was written does not read back.
    """
    out = check_output(out)
    with whole_folder(out) as folder:
        executable.save(folder)
        archive.save(program, folder)
        save_batches(samples, folder / SAMPLES)
        _write_json(folder / REPORT, report.to_json())
        _write_json(folder / MANIFEST, _manifest_json(manifest, executable, report))
        # What is certified is what was saved, not what was in memory.
        saved = find_target(manifest.target).executable.load(folder)
        write_certificate(
            folder,
            source=source,
            program=program,
            report=report,
            measured=measure(saved, Reference(source, samples)),
            samples=samples,
            calibrated=manifest.calibrated,
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        InputError: there is no artifact.
        ArtifactError: the manifest is damaged, of another version, or names a target that is not installed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "it has no manifest.json" if folder.is_dir() else "there is no such folder"
        raise InputError(f"{folder} is no converted model: {what}; make one with `tersor convert` or save()")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind, number = data["kind"], data["format"]
        if kind == KIND and number == FORMAT:
            manifest = Manifest(
                target=str(data["target"]),
                options=dict(data["options"]),
                structure=Structure.from_json(data["structure"]),
                ranges={str(name): (int(low), high) for name, (low, high) in data["dimensions"].items()},
                calibrated=bool(data["calibrated"]),
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {error}): convert the model again"
        ) from error
    if kind != KIND or number != FORMAT:
        raise ArtifactError(
            f"{path} is {kind!r} of format {number!r}; this Tersor reads {KIND!r} of format {FORMAT}"
        )
    if manifest.target not in target_names():
        raise ArtifactError(
            f"{path} names target {manifest.target!r}; this Tersor has {', '.join(target_names())}"
        )
    return manifest


def check_files(folder: Path) -> None:
    """Raise ArtifactError unless the certificate and every file that it names are as they were written."""
    problems = changed_files(folder, read_certificate(folder))
    if problems:
        raise ArtifactError(f"{folder} is damaged: {'; '.join(problems)}: convert the model again")


def read_session(folder: Path, manifest: Manifest, options: Mapping[str, Any]) -> Session:
    """The target's executable, loaded from its own files.

    Raises:
        InputError: the target has no such option.
        ArtifactError: a file is missing or damaged.
    """
    target, given = target_with_options(manifest.target, options)
    return Session(target.executable.load(folder, **given), manifest.structure, manifest.ranges)


def read_saved_report(folder: Path) -> Report:
    """The pipeline's report.  Raises ArtifactError when it is damaged."""
    path = folder / REPORT
    try:
        return read_report(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {error}): convert the model again"
        ) from error


def _manifest_json(manifest: Manifest, executable: Executable, report: Report) -> dict[str, Any]:
    def specs(values: Any) -> list[dict[str, Any]]:
        return [
            {"name": v.name, "shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")}
            for v in values
        ]

    return {
        "kind": KIND,
        "format": FORMAT,
        "tersor": version("tersor"),
        "target": manifest.target,
        "options": dict(manifest.options),
        "passes": [step.spec for step in report.kept],
        "calibrated": manifest.calibrated,
        "inputs": specs(executable.inputs),
        "outputs": specs(executable.outputs),
        "dimensions": {name: list(bounds) for name, bounds in manifest.ranges.items()},
        "structure": manifest.structure.to_json(),
    }


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
