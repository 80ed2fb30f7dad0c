"""Generation of Gemma 3 270M with weights of 8 bits and fewer, beside llama.cpp on its own file, on CPU.

python -m benchmarks.quantised                      writes its section of docs/benchmarks.md
python -m benchmarks.quantised --new 32 --prompts 6 a quick look

llama.cpp and onnxruntime-genai take part where they are installed: see `benchmarks/peers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from rich.console import Console

import tersor
from examples.prompts import Prompt, prompts, untouched_rows
from examples.real_data import prose
from tersor.runtime.decoder import Decoder
from tersor.runtime.machine import read_bandwidth

from .decoding_sides import (
    Ours,
    Result,
    Side,
    Transformers,
    by_kind,
    first_token,
    gemma,
    mean_ratio,
    settings,
    spread,
)
from .page import check_limits, provenance, put_section, table
from .peers import LLAMA, LLAMA_LOOKUP, genai_sides, llama_sides

PEER = "transformers"
DRAFTER = "several"
KINDS = ("int8", "gguf")
# Over transformers in float32: int8 weights, plain and with guesses.
PLAIN_LIMIT, GUESSED_LIMIT = 6.0, 11.0
# Over llama.cpp's plain decoding, plain and with guesses; and with guesses over its prompt lookup.
LLAMA_PLAIN, LLAMA_GUESSED, LLAMA_LOOKED_UP = 1.2, 2.2, 1.2
# Rows and tokens of the text on which perplexity is measured.
MEASURED = (12, 256)
# Seconds to the first token of a prompt of so many, int8 over transformers.
FIRST, FIRST_LIMIT = 1000, 0.5
_INTRODUCTION = """\
Gemma 3 270M, greedy, {new} new tokens behind each of {prompts} prompts, which go through all sides in turns; tokens a
second with the prompt's own time, median of {repeats} run(s). *transformers*: in float32. *int8*: 8-bit weights, the
vocabulary's included; *gguf*: the 4-bit and 6-bit blocks of llama.cpp's own file, not rounded again; *+ {drafter}*:
with `speculate:drafter={drafter}`, whose tokens are those without it. Ratios are geometric means over prompts."""

_console = Console(stderr=True)


def guessed(kind: str) -> str:
    """The side that guesses, of weights of that kind."""
    return f"{kind} + {DRAFTER}"


class Bench:
    """The model on all sides."""

    def __init__(self, new: int) -> None:
        self.new = new
        model, self.tokenizer, example = gemma()
        # What rounding costs is measured on text, of which no prompt is made.
        rows = torch.tensor(untouched_rows(self.tokenizer, prose(), *MEASURED))
        calibration = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in rows.split(2)]
        self.peer = Transformers(PEER, model)
        self.sides: list[Side] = [self.peer]
        self.decoders: dict[str, Decoder] = {}
        self.bytes: dict[str, int] = {}
        self.losses: dict[str, str] = {}
        for kind in KINDS:
            fast = tersor.optimize_model(
                model,
                ["kv-cache", "speculate"],
                "onnx",
                example_inputs=example,
                calibration=calibration,
                require_speedup=False,
                weights=kind,
            )
            assert fast.report.storage is not None
            stored = fast.report.storage.kept
            self.bytes[kind] = stored.bytes
            self.losses[kind] = f"{stored.loss:+.2%} (standard error {stored.error:.2%})"
            decoder = self.decoders[kind] = fast.generator.decoder
            self.sides += [Ours(kind, decoder), Ours(guessed(kind), decoder, DRAFTER)]
            Ours(kind, decoder, DRAFTER).run([2, 5, 6, 5], 12)
        self.sides += [*llama_sides(), *genai_sides("int4")]

    def run(self, prompt: Prompt, repeats: int) -> Result:
        result = Result(prompt)
        for _ in range(repeats):
            result.take_turn(self.sides, self.new)
        return result


def missed(results: Sequence[Result], first: dict[str, float]) -> list[str]:
    """What is asked of the figures and is not so."""
    asked = [
        (f"int8 over {PEER}", "int8", PEER, PLAIN_LIMIT),
        (f"{guessed('int8')} over {PEER}", guessed("int8"), PEER, GUESSED_LIMIT),
    ]
    if LLAMA in results[0].seconds:
        best = max(KINDS, key=lambda kind: mean_ratio(results, kind, LLAMA))
        for kind in dict.fromkeys((best, "gguf")):
            asked += [
                (f"{kind} over {LLAMA}", kind, LLAMA, LLAMA_PLAIN),
                (f"{guessed(kind)} over {LLAMA}", guessed(kind), LLAMA, LLAMA_GUESSED),
                (f"{guessed(kind)} over {LLAMA_LOOKUP}", guessed(kind), LLAMA_LOOKUP, LLAMA_LOOKED_UP),
            ]
    ratios = [(what, mean_ratio(results, side, over), limit) for what, side, over, limit in asked]
    found = [f"{what}: {ratio:.2f} (at least {limit:g})" for what, ratio, limit in ratios if ratio < limit]
    if first["int8"] / first[PEER] > FIRST_LIMIT:
        found.append(f"time to first token: {first['int8'] / first[PEER]:.2f} (at most {FIRST_LIMIT})")
    return found + [
        f"{guessed(kind)} has other tokens than {kind} on {result.prompt.kind}"
        for result in results
        for kind in KINDS
        if result.tokens[guessed(kind)] != result.tokens[kind]
    ]


def section(results: Sequence[Result], first: dict[str, float], bench: Bench, repeats: int) -> str:
    """The whole section of the page."""
    names = [side.name for side in bench.sides]
    header = ["kind of text", *(f"{name} tokens/s" for name in names)]
    rows = [
        [label, *(f"{median(len(r.tokens[n]) / median(r.seconds[n]) for r in some):.1f}" for n in names)]
        for label, some in (*by_kind(results).items(), ("**all**", results))
    ]
    overs = [name for name in (PEER, LLAMA, LLAMA_LOOKUP) if name in names]
    ours = [name for kind in KINDS for name in (kind, guessed(kind))]
    ratios = [
        [name, *(f"{mean_ratio(results, name, over):.2f}" for over in overs)]
        for name in names
        if name in ours or name not in overs
    ]
    fastest = {
        kind: max(len(r.tokens[kind]) / median(r.seconds[kind]) for r in results) * bench.bytes[kind]
        for kind in KINDS
    }
    short = missed(results, first)
    return "\n".join(
        [
            provenance("quantised"),
            "",
            _INTRODUCTION.format(new=bench.new, prompts=len(results), repeats=repeats, drafter=DRAFTER),
            "",
            table(header, rows),
            "",
            table(["times as fast as", *overs], ratios),
            "",
            (
                "Perplexity on text against float32: "
                + "; ".join(f"{kind} {bench.losses[kind]}" for kind in KINDS)
                + ". Weights read a token, and the share of this machine's measured read bandwidth at the fastest: "
                + "; ".join(
                    f"{kind} {bench.bytes[kind] / 1e6:.0f} MB, {fastest[kind] / read_bandwidth():.0%}"
                    for kind in KINDS
                )
                + "."
            ),
            "",
            (
                f"Seconds to the first token behind {FIRST} tokens: "
                + ", ".join(f"{name} {seconds:.2f}" for name, seconds in first.items())
                + "."
            ),
            "",
            "Below what is asked: " + ("; ".join(short) if short else "nothing") + ".",
        ]
    )


def main() -> None:
    options = settings("quantised", __doc__.split("\n")[0])
    torch.set_grad_enabled(False)
    bench = Bench(options.new)
    every = prompts(bench.tokenizer, prose())
    long: Any = every[-1].tokens[:FIRST]
    chosen = spread(every, options.prompts)
    results = []
    for prompt in chosen:
        results.append(last := bench.run(prompt, options.repeats))
        speeds = ", ".join(f"{n} {len(last.tokens[n]) / median(s):.1f}" for n, s in last.seconds.items())
        _console.print(f"{prompt.kind}, {len(prompt.tokens)} tokens: {speeds} tokens/s", highlight=False)
    first = first_token([side for side in bench.sides if side.name in (PEER, *KINDS, LLAMA)], long)
    text = section(results, first, bench, options.repeats)
    put_section("quantised", text, bool(options.print or options.prompts), elsewhere=True)
    check_limits(missed(results, first), options.check)


if __name__ == "__main__":
    main()
