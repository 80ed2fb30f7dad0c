"""An ONNX file that is compared with its Program before it appears under its name."""

from __future__ import annotations

import json
from pathlib import Path

from .agreement import at_other_sizes, check_agreement
from .calibration import Batch
from .codegen.onnx.emitter import Ops
from .codegen.onnx.executable import OnnxExecutable
from .codegen.onnx.export import export
from .codegen.onnx.file import put_in_place
from .codegen.onnx.session import trial_session
from .codegen.stepped import called_whole
from .folders import scratch_folder
from .ir.program import Program
from .passes.report import Report


def report_metadata(report: Report) -> dict[str, str]:
    """What a file says of its making: the specs and the report, as JSON texts."""
    specs = [step.spec for step in report.kept]
    return {"tersor.passes": json.dumps(specs), "tersor.report": json.dumps(report.to_json())}


def export_checked(
    program: Program, path: Path, ops: Ops, report: Report, samples: list[Batch]
) -> list[Path]:
    """Write ``program`` to ``path``, run the file, compare, and only then give it its name.

    Returns:
        the files written: ``path``, and the weights beside it where the model is larger than a file may be.

    Raises:
        InputError: the file system refuses.
        LoweringError: an operator has no ONNX form, or ONNX Runtime computed something else.
    """
    with scratch_folder(path) as folder:
        written = export(program, folder / path.name, ops=ops, metadata=report_metadata(report))
        session = trial_session(folder / path.name)
        steps = OnnxExecutable(session, program.inputs, program.outputs, ops=ops)
        executable = called_whole(steps, program.stepping)
        check_agreement(executable, program, samples, "onnx", at_other_sizes(program))
        return put_in_place(written, path)
