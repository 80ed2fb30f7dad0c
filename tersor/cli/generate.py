"""``tersor generate``: what an artifact with a cache says next."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from .options import Artifact, Imports, Json, Threads, Traceback, import_modules
from .output import emit, progress_bar
from .prompt import Prompt, read_prompt

_OWN = "the model's own"


def generate(
    out: Artifact,
    prompt: Prompt,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens at most.", min=1)] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help="Draw at this temperature; 0 takes the most likely token.",
            show_default=_OWN,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", help="Draw from the K most likely tokens.", min=0, show_default=_OWN),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Draw from the most likely tokens that together have P.", show_default=_OWN
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Above 1: tokens that are there already become less likely.",
            show_default=_OWN,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Stop behind this text; may be repeated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Makes draws again.")] = None,
    imports: Imports = None,
    threads: Threads = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Print what follows PROMPT, as it is generated; OUT was converted with -p kv-cache."""
    import time

    from ..ir.errors import InputError
    from ..model import load
    from ..runtime.sampling import Sampling

    import_modules(imports)
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
    }
    said = {name: value for name, value in options.items() if value is not None}
    # What makes no sense comes out before the model is read.
    Sampling(**said)
    if any(not one for one in stop or ()):
        raise InputError(
            "--stop is given an empty text: give what generation is to stop behind, or leave it out"
        )
    text = read_prompt(prompt)
    with progress_bar() as report:
        report(f"reading {out}", 0, 1)
        model = load(out, threads=threads) if threads is not None else load(out)
    started = time.perf_counter()

    def show(piece: str) -> None:
        if not json:
            sys.stdout.write(piece)
            sys.stdout.flush()

    new = model.generate(
        text,
        **said,
        max_new_tokens=max_new_tokens,
        stop=tuple(stop or ()),
        seed=seed,
        stream=show,
    )
    seconds = time.perf_counter() - started
    counts = model.generated
    chosen = model.generator.decoder.chosen
    data = {
        "prompt": text,
        "text": new,
        "seconds": seconds,
        "statistics": asdict(counts),
        "notes": list(model.generator.notes),
        "chosen": {step: list(forms) for step, forms in chosen.items()},
    }
    emit(data, "", json)
    if not json:
        # The first token is the prompt's own, and no step's.
        print(f"{counts}; {(1 + counts.tokens) / seconds:.1f} tokens/s with the prompt", file=sys.stderr)
        for note in model.generator.notes:
            print(f"note: {note}", file=sys.stderr)
        for step, forms in chosen.items():
            print(f"steps of {step}: {'; '.join(forms)}", file=sys.stderr)
