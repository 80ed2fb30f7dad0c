"""The folder that a converted model is saved to.

manifest.json                       format, target, inputs, outputs, dimensions, output structure
certificate.json                    what was promised and measured, and a hash of every other file
report.json                         the pipeline's report
program.json, program.safetensors   the rewritten Program
calibration.safetensors             the inputs on which it was measured
tokenizer/                          the tokenizer's files, where the model had any
...                                 the target's own files, such as model.onnx
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .agreement import measure
from .calibration import Batch, save_batches
from .certificate import changed_files, read_certificate, write_certificate
from .codegen.stepped import called_whole
from .codegen.target import Executable, find_target
from .folders import MANIFEST, check_output, whole_folder
from .ir import archive
from .ir.errors import ArtifactError, InputError
from .ir.program import Program
from .lowering import target_with_options
from .manifest import Manifest
from .passes.deviation import Reference
from .passes.report import Report
from .runtime.session import Session
from .saved_report import read_report
from .text import TOKENIZER

REPORT, SAMPLES = "report.json", "calibration.safetensors"


def write(
    out: str | os.PathLike[str],
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
        _copy_tokenizer(program, folder)
        _write_json(folder / REPORT, report.to_json())
        _write_json(folder / MANIFEST, manifest.to_json(executable, report))
        # What is certified is what was saved, not what was in memory.
        saved = called_whole(find_target(manifest.target).executable.load(folder), manifest.stepping)
        write_certificate(
            folder,
            source=source,
            program=program,
            report=report,
            measured=measure(saved, Reference(source, samples)),
            samples=samples,
            calibrated=manifest.calibrated,
        )


def check_files(folder: Path) -> None:
    """Raise ArtifactError unless the certificate and every file that it names are as they were written."""
    problems = changed_files(folder, read_certificate(folder))
    if problems:
        raise ArtifactError(f"{folder} is damaged: {'; '.join(problems)}: convert the model again")


def read_session(folder: Path, manifest: Manifest, options: Mapping[str, Any]) -> Session:
    """The target's executable, loaded from its own files.

    Raises:
        InputError: the target has no such option.
        ArtifactError: a file is missing or damaged, or the manifest describes something else.
    """
    try:
        target_with_options(manifest.target, manifest.options)
    except InputError as error:
        raise ArtifactError(f"{folder / MANIFEST} is damaged ({error}): convert the model again") from error
    target, given = target_with_options(manifest.target, options)
    executable = called_whole(target.executable.load(folder, **given), manifest.stepping)
    leaves, outputs = len(manifest.structure.names()), len(executable.outputs)
    unbounded = {dim for spec in executable.inputs for dim in spec.dynamic} - set(manifest.ranges)
    if leaves != outputs or unbounded:
        what = f"{leaves} outputs for {outputs}" if leaves != outputs else f"no range for {min(unbounded)!r}"
        raise ArtifactError(
            f"{folder / MANIFEST} does not describe this artifact ({what}): convert the model again"
        )
    return Session(executable, manifest.structure, manifest.ranges, manifest.least, manifest.fixed)


def read_saved_report(folder: Path) -> Report:
    """The pipeline's report.  Raises ArtifactError when it is damaged."""
    path = folder / REPORT
    try:
        return read_report(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged ({type(error).__name__}: {error}): convert the model again"
        ) from error


def _copy_tokenizer(program: Program, folder: Path) -> None:
    """The tokenizer that came with the model, so that the artifact takes text wherever it is taken."""
    files = [Path(file) for file in program.facts.tokenizer_files.values()]
    for file in files:
        if file.is_file():
            (folder / TOKENIZER).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / TOKENIZER / file.name)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
