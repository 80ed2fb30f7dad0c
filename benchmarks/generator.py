"""Gemma 3 270M as a file that generates by itself, beside ``generate`` step by step, on CPU.

python -m benchmarks.generator                      writes its section of docs/benchmarks.md
python -m benchmarks.generator --new 32 --prompts 6 a quick look

Every prompt goes through all sides in turns; their tokens must be the same, or part at a tie.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console

import tersor
from examples.prompts import Prompt, prompts
from examples.real_data import prose
from examples.real_models import gemma3_270m
from tersor.runtime.divergence import Divergence, first_divergence

from . import decoding_sides
from .decoding_sides import Ours, Side, Transformers, by_kind, mean_ratio, settings, spread
from .page import check_limits, provenance, put_section, table

PLAIN, GREEDY, GUESSING = "generate, plain", "greedy file", "guessing file"
SIDES = (PLAIN, GREEDY, GUESSING)
# Of all prompts together: seconds of the greedy file over plain decoding, and over those of the guessing one.
GREEDY_LIMIT, GUESSING_LIMIT = 1.15, 1.7
_INTRODUCTION = """\
Gemma 3 270M, float32, greedy, {new} new tokens behind each of {prompts} prompts, which go through all sides in turns;
seconds with the prompt's own, median of {repeats} run(s). *{plain}*: `fast.generate` with `kv-cache`; the files: what
`fast.export_onnx(..., generate=True)` writes, without guesses and with those of `speculate:drafter=ngram`, in ONNX
Runtime alone. Ratios are geometric means over prompts."""

_console = Console(stderr=True)


@dataclass
class Result(decoding_sides.Result):
    """And where tokens part."""

    divergences: list[Divergence] = field(default_factory=list)


@dataclass
class File:
    """A file that generates by itself."""

    name: str
    session: Any

    def run(self, prompt: list[int], new: int) -> list[int]:
        given = {"input_ids": np.array([prompt]), "max_new_tokens": np.array(new)}
        return self.session.run(None, given)[0][0].tolist()


class Bench:
    """The model on all sides."""

    def __init__(self, new: int, folder: Path) -> None:
        self.new = new
        model, self.tokenizer = gemma3_270m()
        ids = torch.randint(5, 1000, (1, 24))
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        fast = tersor.optimize_model(
            model, ["kv-cache", "speculate:drafter=ngram"], "onnx", example_inputs=example
        )
        self.model, self.plain = Transformers("the model", model), Ours(PLAIN, fast.generator.decoder)
        self.sides: list[Side] = [self.plain]
        for side in (GREEDY, GUESSING):
            (file,) = fast.export_onnx(
                folder / f"{side}.onnx", generate=True, guess=side == GUESSING, end_tokens=None
            )
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            self.sides.append(File(side, session))
        for side_ in self.sides:
            side_.run([2, 5], 2)

    def run(self, prompt: Prompt, repeats: int) -> Result:
        result = Result(prompt)
        for _ in range(repeats):
            result.take_turn(self.sides, self.new)
        for side in (GREEDY, GUESSING):
            parted = first_divergence(
                prompt.tokens, result.tokens[PLAIN], result.tokens[side], self.plain.logits, self.model.logits
            )
            result.divergences += [] if parted is None else [parted]
        return result


def missed(results: Sequence[Result]) -> list[str]:
    """What is asked of the figures and is not so."""
    slower, faster = mean_ratio(results, PLAIN, GREEDY), mean_ratio(results, GUESSING, GREEDY)
    found = []
    if slower > GREEDY_LIMIT:
        found.append(f"{GREEDY} takes {slower:.2f} of {PLAIN} (at most {GREEDY_LIMIT:g})")
    if faster < GUESSING_LIMIT:
        found.append(f"{GUESSING} over {GREEDY}: {faster:.2f} (at least {GUESSING_LIMIT:g})")
    return found + [str(d) for result in results for d in result.divergences if not d.is_tie]


def section(results: Sequence[Result], new: int, repeats: int) -> str:
    """The whole section of the page."""
    header = ["kind of text", *(f"{side}, s" for side in SIDES), "greedy / plain", "greedy / guessing"]
    rows = [_cells(kind, some) for kind, some in by_kind(results).items()]
    rows.append(_cells("**all**", results))
    whole = sum(not result.divergences for result in results)
    parted = "; ".join(str(d) for result in results for d in result.divergences)
    short = missed(results)
    return "\n".join(
        [
            provenance("generator"),
            "",
            _INTRODUCTION.format(new=new, prompts=len(results), repeats=repeats, plain=PLAIN),
            "",
            table(header, rows),
            "",
            f"{whole} of {len(results)} prompts have the same tokens on all sides to the end"
            + (f"; the others part at: {parted}." if parted else "."),
            "",
            "Below what is asked: " + ("; ".join(short) if short else "nothing") + ".",
        ]
    )


def _cells(label: str, results: Sequence[Result]) -> list[str]:
    seconds = [f"{median(median(r.seconds[side]) for r in results):.2f}" for side in SIDES]
    ratios = [f"{mean_ratio(results, side, GREEDY):.2f}" for side in (PLAIN, GUESSING)]
    return [label, *seconds, *ratios]


def main() -> None:
    options = settings("generator", __doc__.split("\n")[0])
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.new, Path(folder))
        chosen = spread(prompts(bench.tokenizer, prose()), options.prompts)
        results = []
        for prompt in chosen:
            results.append(bench.run(prompt, options.repeats))
            last = results[-1]
            times = ", ".join(f"{side} {median(last.seconds[side]):.2f} s" for side in SIDES)
            _console.print(
                f"{prompt.kind}, {len(prompt.tokens)} tokens: {times}"
                + "".join(f"; parts at {d}" for d in last.divergences),
                highlight=False,
            )
    text = section(results, options.new, options.repeats)
    put_section("generator", text, bool(options.print or options.prompts), elsewhere=True)
    check_limits(missed(results), options.check)


if __name__ == "__main__":
    main()
