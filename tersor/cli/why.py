"""``tersor why``: where an artifact's tokens part from its model's, and whether rounding explains it."""

from __future__ import annotations

from typing import Annotated

import typer

from .exit_codes import ExitCode
from .options import Against, Artifact, Imports, Json, Threads, Traceback, import_modules
from .output import emit, emit_error, progress_bar
from .prompt import Prompt, read_prompt


def why(
    out: Artifact,
    prompt: Prompt,
    against: Against,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens at most.", min=1)] = 128,
    imports: Imports = None,
    threads: Threads = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Generate behind PROMPT, find the first token that MODEL would have chosen otherwise, and say if it is a tie.

    Exit 1 where it is none.
    """
    from ..model import load
    from ..why import compare_with_model

    import_modules(imports)
    text = read_prompt(prompt)
    with progress_bar() as report:
        report(f"reading {out}", 0, 1)
        model = load(out, threads=threads) if threads is not None else load(out)
        report("comparing", 0, 1)
        found = compare_with_model(model, against, text, max_new_tokens)
    emit(found.to_json(), str(found), json)
    if not found.ok:
        emit_error(f"the tokens are not the model's: {found}", "ArtifactError", ExitCode.FAILED, [])
        raise typer.Exit(ExitCode.FAILED)
