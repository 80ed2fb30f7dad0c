"""``tersor train-prompts``: the embeddings that ``speculate:drafter=ppd`` guesses by."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from .options import Json, Model, Threads, Traceback
from .output import emit, progress_bar


def train_prompts(
    model: Model,
    text: Annotated[
        str,
        typer.Option("--text", metavar="FILE", help="Text of the kind that the model is to write, UTF-8."),
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The file to write, .safetensors.")],
    prompts: Annotated[
        int,
        typer.Option(metavar="N", help="Prompt tokens: how much further ahead is guessed.", min=1, max=16),
    ] = 3,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of training.", min=1)] = 300,
    length: Annotated[
        int, typer.Option(metavar="N", help="Tokens of the text that one step is trained on.", min=2)
    ] = 128,
    seed: Annotated[int, typer.Option(metavar="N", help="Makes the same file again.")] = 0,
    threads: Threads = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Train prompt tokens for MODEL, which stays as it is; convert it with -p speculate:drafter=ppd,prompts=OUT."""
    from ..folders import check_output_file
    from ..ir.errors import InputError

    # All that can be wrong with the command line comes out before the model is read.
    place = check_output_file(out)
    if place.suffix != ".safetensors":
        raise InputError(f"{out} does not end in .safetensors, which is what is written")
    words = _read(text)
    import torch

    from ..ir.capture import capture
    from ..text import load_tokenizer, opening, tokenizer_folder
    from ..train_prompts import train_prompts as train

    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as report:
        report(f"reading {model}", 0, 1)
        program = capture(model)
        tokenizer = load_tokenizer(tokenizer_folder(program, None))
        tokens = tokenizer(words, add_special_tokens=False)["input_ids"]
        trained = train(program, tokens, prompts, steps, length, seed, report, opening(tokenizer))
        trained.save(place)
    data = {"out": str(place), "before": asdict(trained.before), "after": asdict(trained.after)}
    emit(data, f"before: {trained.before}\nafter:  {trained.after}\nWrote {out}", json)


def _read(file: str) -> str:
    from pathlib import Path

    from ..ir.errors import InputError

    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as text: {error}") from error
