"""``tersor verify``: does an artifact still hold what its certificate says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .exit_codes import ExitCode
from .options import MODEL_HELP, Artifact, Imports, Json, Traceback, import_modules
from .output import emit, emit_error, progress_bar


def verify(
    out: Artifact,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help=f"The model it was made from; without it only files and program are checked. {MODEL_HELP}",
            show_default=False,
        ),
    ] = None,
    imports: Imports = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Check every hash of OUT's certificate and run its measurements again, except latency; exit 1 on any mismatch."""
    from ..ir.errors import ArtifactError
    from ..verification import verify_artifact

    import_modules(imports)
    try:
        with progress_bar() as report:
            found = verify_artifact(Path(out), against, report)
    except ArtifactError as error:
        if traceback:
            raise
        emit_error(str(error), "ArtifactError", ExitCode.FAILED, ["--json"] if json else [])
        raise typer.Exit(ExitCode.FAILED) from None
    emit(found.to_json(), str(found), json)
    if not found.ok:
        failed = next(check for check in found.checks if not check.ok)
        emit_error(
            f"verification failed: {failed.name}: {failed.detail}", "ArtifactError", ExitCode.FAILED, []
        )
        raise typer.Exit(ExitCode.FAILED)
