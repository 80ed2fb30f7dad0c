"""Generation of Gemma 3 270M on CPU, token by token, beside ``transformers.generate``.

python -m benchmarks.decoding                       prints its section, which the page does not have yet
python -m benchmarks.decoding --new 32 --prompts 6  a quick look

Every prompt goes through all sides in turns; their tokens must be the same, or part at a tie.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from rich.console import Console

import tersor
from examples.prompts import Prompt, prompts
from examples.real_data import prose
from examples.real_models import gemma3_270m
from tersor.runtime.divergence import Divergence, first_divergence
from tersor.runtime.machine import read_bandwidth
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

from . import decoding_sides
from .decoding_sides import DRAFTERS, Ours, Side, Transformers, by_kind, mean_ratio
from .page import check_limits, provenance, table

PEER, LOOKUP, PLAIN, DRAWN = "transformers", "transformers lookup", "plain", "drawn"
# Of all prompts together: plain over transformers; the best drafter over transformers, and over plain.
PLAIN_LIMIT, GUESSED_LIMIT, OVER_PLAIN_LIMIT = 2.0, 5.0, 2.4
# Of every kind of text, and of every prompt, the best drafter over plain; of draws, over plain ones.
KIND_LIMIT, PROMPT_LIMIT, DRAWN_LIMIT = 1.3, 0.97, 1.3
# Seconds to the first token of a prompt of so many, over those of transformers.
FIRST, FIRST_LIMIT = 1000, 0.85
TEMPERATURE = 0.8
_OPENING = """\
Gemma 3 270M, float32, greedy, {new} new tokens behind each of {prompts} prompts, which go through all sides in turns;
tokens a second with the prompt's own time, median of {repeats} run(s). *plain*: `kv-cache`; the others: with
`speculate:drafter=...` of that name; all in ONNX Runtime, all with the tokens of `transformers.generate`, but where two
logits tie. *transformers lookup*: its own `prompt_lookup_num_tokens=8`. Drafters that remember earlier texts begin each
prompt without any. Ratios are geometric means over prompts."""

_console = Console(stderr=True)


@dataclass
class Result(decoding_sides.Result):
    """And what came of guesses."""

    divergence: Divergence | None = None
    guesses: dict[str, Statistics] = field(default_factory=dict)

    @property
    def drawn_apart(self) -> list[str]:
        """The sides that draw other tokens than are drawn without guesses."""
        return [name for name in map(drawn_by, DRAFTERS) if self.tokens[name] != self.tokens[DRAWN]]

    def per_second(self, side: str) -> float:
        return len(self.tokens[side]) / median(self.seconds[side])


class Bench:
    """The model on all sides."""

    def __init__(self, new: int) -> None:
        self.new = new
        model, self.tokenizer = gemma3_270m()
        # What generate is not told it takes from here: every side goes on past the end of a text.
        model.generation_config.eos_token_id = None  # type: ignore[union-attr]
        ids = torch.randint(5, 1000, (1, 24))
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        fast = tersor.optimize_model(model, ["kv-cache", "speculate"], "onnx", example_inputs=example)
        decoder = self.decoder = fast.generator.decoder
        drawn = Sampling(TEMPERATURE, seed=1)
        self.peer, self.plain = Transformers(PEER, model), Ours(PLAIN, decoder)
        self.greedy: list[Side] = [
            self.peer,
            Transformers(LOOKUP, model, {"prompt_lookup_num_tokens": 8}),
            self.plain,
            *(Ours(name, decoder, name) for name in DRAFTERS),
        ]
        self.drawn: list[Side] = [
            Ours(DRAWN, decoder, None, drawn),
            *(Ours(drawn_by(name), decoder, name, drawn) for name in DRAFTERS),
        ]
        # A first text lowers what is needed and measures what steps cost; neither is done again.
        Ours(PLAIN, decoder, "several").run([2, 5, 6, 5], 12)

    def run(self, prompt: Prompt, repeats: int) -> Result:
        result = Result(prompt)
        sides = (*self.greedy, *self.drawn)
        for _ in range(repeats):
            result.take_turn(sides, self.new)
        result.guesses = {s.name: s.counts for s in sides if isinstance(s, Ours) and s.drafter is not None}
        result.divergence = self._compared(result)
        return result

    def first_token(self, prompt: list[int], repeats: int = 5) -> dict[str, float]:
        """Seconds to the first token, the median of turns."""
        seconds: dict[str, list[float]] = {PEER: [], PLAIN: []}
        for _ in range(repeats + 1):
            for side in (self.peer, self.plain):
                started = time.perf_counter()
                side.run(prompt, 1)
                seconds[side.name].append(time.perf_counter() - started)
        # The first turn warms up.
        return {name: median(times[1:]) for name, times in seconds.items()}

    def _compared(self, result: Result) -> Divergence | None:
        """Where tokens leave those of transformers."""
        for name in (PLAIN, *DRAFTERS):
            parted = first_divergence(
                result.prompt.tokens,
                result.tokens[PEER],
                result.tokens[name],
                self.peer.logits,
                lambda tokens: self.peer.logits(tokens, 4),
                self.plain.logits,
            )
            if parted is not None:
                return parted
        return None


def drawn_by(drafter: str) -> str:
    """The side that draws with a drafter."""
    return f"{DRAWN}, {drafter}"


def best_drafter(results: Sequence[Result]) -> str:
    """The one that is fastest over all prompts."""
    return max(DRAFTERS, key=lambda name: mean_ratio(results, name, PLAIN))


def missed(results: Sequence[Result]) -> list[str]:
    """What is asked of the figures and is not so."""
    best = best_drafter(results)
    asked = [
        (f"{PLAIN} over {PEER}", mean_ratio(results, PLAIN, PEER), PLAIN_LIMIT),
        (f"{best} over {PEER}", mean_ratio(results, best, PEER), GUESSED_LIMIT),
        (f"{best} over {PLAIN}", mean_ratio(results, best, PLAIN), OVER_PLAIN_LIMIT),
        *(
            (f"{best} over {PLAIN} on {kind}", mean_ratio(some, best, PLAIN), KIND_LIMIT)
            for kind, some in by_kind(results).items()
        ),
        (f"{best} over {PLAIN} on the worst prompt", worst(results, best), PROMPT_LIMIT),
        (f"draws with {best} over draws", mean_ratio(results, drawn_by(best), DRAWN), DRAWN_LIMIT),
    ]
    found = [f"{what}: {ratio:.2f} (at least {limit:g})" for what, ratio, limit in asked if ratio < limit]
    return found + [
        str(r.divergence) for r in results if r.divergence is not None and not r.divergence.is_tie
    ]


def worst(results: Sequence[Result], side: str) -> float:
    return min(result.ratio(side, PLAIN) for result in results)


def section(
    results: Sequence[Result],
    first: dict[str, float],
    bytes_read: int,
    curve: str,
    new: int,
    repeats: int,
) -> str:
    """The whole section of the page."""
    columns = (PEER, LOOKUP, PLAIN, *DRAFTERS)
    header = ["kind of text", *(f"{side} tokens/s" for side in columns), f"plain / {PEER}"]
    for name in DRAFTERS:
        header += [f"{name} / {PEER}", f"{name} / plain", f"{name}: tokens a step"]
    rows = [_cells(kind, some, columns) for kind, some in by_kind(results).items()]
    rows.append(_cells("**all**", results, columns))
    draws = [f"draws with {name}: / draws" for name in DRAFTERS]
    drawn_rows = [
        [kind, *(f"{mean_ratio(some, drawn_by(name), DRAWN):.2f}" for name in DRAFTERS)]
        for kind, some in (*by_kind(results).items(), ("**all**", results))
    ]
    fastest = max(result.per_second(PLAIN) for result in results)
    share = fastest * bytes_read / read_bandwidth()
    ties = [result.divergence for result in results if result.divergence is not None]
    short = missed(results)
    if first[PLAIN] / first[PEER] > FIRST_LIMIT:
        short.append(f"time to first token: {first[PLAIN] / first[PEER]:.2f} (at most {FIRST_LIMIT})")
    return "\n".join(
        [
            provenance("decoding"),
            "",
            _OPENING.format(new=new, prompts=len(results), repeats=repeats),
            "",
            table(header, rows),
            "",
            (
                f"At temperature {TEMPERATURE}, one seed, tokens are those drawn without guesses in "
                f"{sum(not r.drawn_apart for r in results)} of {len(results)} prompts; in others rounding decides."
            ),
            "",
            table(["kind of text", *draws], drawn_rows),
            "",
            f"Worst prompt over plain: {', '.join(f'{name} {worst(results, name):.2f}' for name in DRAFTERS)}. "
            f"{len(results) - len(ties)} of {len(results)} prompts have the tokens of transformers to the end"
            + (f"; {len(ties)} part at: {'; '.join(map(str, ties))}." if ties else "."),
            "",
            (
                f"Seconds to the first token behind {FIRST} tokens: {first[PLAIN]:.2f}, of transformers "
                f"{first[PEER]:.2f}, ratio {first[PLAIN] / first[PEER]:.2f}."
            ),
            "",
            (
                f"Plain decoding reads {bytes_read / 1e9:.2f} GB of weights a token: at its fastest {share:.0%} of "
                f"this machine's measured read bandwidth. Milliseconds of a step of {curve}."
            ),
            "",
            "Below what is asked: " + ("; ".join(short) if short else "nothing") + ".",
        ]
    )


def _cells(label: str, results: Sequence[Result], columns: Sequence[str]) -> list[str]:
    cells = [label]
    cells += [f"{median(r.per_second(side) for r in results):.1f}" for side in columns]
    cells.append(f"{mean_ratio(results, PLAIN, PEER):.2f}")
    for name in DRAFTERS:
        steps, tokens = (sum(getattr(r.guesses[name], what) for r in results) for what in ("steps", "tokens"))
        cells += [f"{mean_ratio(results, name, over):.2f}" for over in (PEER, PLAIN)]
        cells.append(f"{tokens / steps:.2f}")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.decoding", description=__doc__.split("\n")[0])
    parser.add_argument("--new", type=int, default=128, help="new tokens behind each prompt")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each prompt and side")
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a stated limit is missed")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = Bench(options.new)
    results = []
    for prompt in prompts(bench.tokenizer, prose())[: options.prompts or None]:
        results.append(bench.run(prompt, options.repeats))
        last = results[-1]
        speeds = ", ".join(f"{side} {last.per_second(side):.1f}" for side in last.tokens)
        parted = f"; parts at {last.divergence}" if last.divergence is not None else ""
        _console.print(
            f"{prompt.kind}, {len(prompt.tokens)} tokens: {speeds} tokens/s{parted}", highlight=False
        )
    weights = bench.decoder.program.weights
    bytes_read = sum(tensor.nbytes for tensor in {w.data_ptr(): w for w in weights.values()}.values())
    costs = bench.decoder.cost_curve
    curve = "/".join(map(str, costs.widths)) + " tokens: " + "/".join(f"{s * 1e3:.1f}" for s in costs.seconds)
    long: Any = prompts(bench.tokenizer, prose())[-1].tokens[:FIRST]
    text = section(results, bench.first_token(long), bytes_read, curve, options.new, options.repeats)
    print(text)
    check_limits(missed(results), options.check)


if __name__ == "__main__":
    main()
