"""From the name of a model, artifact or saved Program to a Program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .folders import is_artifact
from .ir import archive
from .ir.capture import capture
from .ir.capture.frontend import Dynamic
from .ir.program import Program


def read_program(source: str, example_inputs: Any = None, dynamic: Dynamic = "auto") -> Program:
    """The Program of an artifact, of a folder that ``ir.archive.save`` wrote, or of a model that is captured.

    Raises:
        InputError, CaptureError: the model cannot be found or captured.
        ArtifactError: a saved Program is damaged.
    """
    path = Path(source)
    if is_artifact(path) or (path / archive.GRAPH_FILE).is_file():
        return archive.load(path)
    return capture(source, example_inputs, dynamic)
