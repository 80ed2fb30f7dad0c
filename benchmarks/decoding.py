"""Generation of Gemma 3 270M on CPU, token by token, beside ``transformers.generate``.

python -m benchmarks.decoding                       prints its section, which the page does not have yet
python -m benchmarks.decoding --new 32 --prompts 6  a quick look

Every prompt goes through all sides in turns; their tokens must be the same, or part at a tie.
"""

from __future__ import annotations

import argparse
import math
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
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.drafter import Drafter
from tersor.runtime.decoder import Decoder
from tersor.runtime.divergence import Divergence, first_divergence
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.machine import read_bandwidth
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

from .page import check_limits, provenance, table

PEER, PLAIN = "transformers", "plain"
DRAFTERS = tuple(find_methods(Drafter))  # type: ignore[type-abstract]
# Of all prompts together: plain over transformers; the best drafter over transformers, and over plain.
PLAIN_LIMIT, GUESSED_LIMIT, OVER_PLAIN_LIMIT = 2.0, 5.0, 2.4
# Of every kind of text, and of every prompt, the best drafter over plain.
KIND_LIMIT, PROMPT_LIMIT = 1.3, 0.97
_OPENING = """\
Gemma 3 270M, float32, greedy, {new} new tokens behind each of {prompts} prompts, which go through all sides in turns;
tokens a second with the prompt's own time, median of {repeats} run(s). *plain*: `kv-cache`; the others: with
`speculate:drafter=...` of that name; all in ONNX Runtime, all with the tokens of `transformers.generate`, but where two
logits tie. Drafters that remember earlier texts begin each prompt without any. Ratios are geometric means over
prompts."""

_console = Console(stderr=True)


@dataclass
class Result:
    """One prompt: seconds of every side, the tokens, what came of guesses."""

    prompt: Prompt
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    divergence: Divergence | None = None
    guesses: dict[str, Statistics] = field(default_factory=dict)

    def ratio(self, side: str, over: str) -> float:
        """How many times as fast ``side`` is as ``over``."""
        return median(b / a for a, b in zip(self.seconds[side], self.seconds[over], strict=True))

    def per_second(self, side: str) -> float:
        return len(self.tokens[side]) / median(self.seconds[side])


class Bench:
    """The model on all sides."""

    def __init__(self, new: int) -> None:
        self.new = new
        self.model, self.tokenizer = gemma3_270m()
        # What generate is not told it takes from here: every side goes on past the end of a text.
        self.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
        ids = torch.randint(5, 1000, (1, 24))
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        fast = tersor.optimize_model(self.model, ["kv-cache", "speculate"], "onnx", example_inputs=example)
        # A first text lowers what is needed and measures what steps cost; neither is done again.
        fast.generate([[2, 5]], max_new_tokens=2)
        generator: Any = fast.generator
        self.decoder: Decoder = generator.decoder
        assert self.decoder.cost_curve

    def run(self, prompt: Prompt, repeats: int) -> Result:
        result = Result(prompt)
        for _ in range(repeats):
            for side in (PEER, PLAIN, *DRAFTERS):
                started = time.perf_counter()
                result.tokens[side] = self._run(side, prompt.tokens, result)
                result.seconds.setdefault(side, []).append(time.perf_counter() - started)
        result.divergence = self._compared(result)
        return result

    def _run(self, side: str, tokens: list[int], result: Result) -> list[int]:
        if side == PEER:
            return self._by_transformers(tokens)
        stopping = Stopping(self.new)
        if side == PLAIN:
            return generate(self.decoder, [tokens], stopping, Sampling())[0]
        spec: Any = parse_spec(f"speculate:drafter={side}")
        counts = result.guesses[side] = Statistics()
        return generate(self.decoder, [tokens], stopping, Sampling(), None, spec.drafter.begin, counts)[0]

    def _by_transformers(self, tokens: list[int]) -> list[int]:
        ids = torch.tensor([tokens])
        run: Any = self.model.generate
        found = run(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=self.new, pad_token_id=0
        )
        return found[0, len(tokens) :].tolist()  # type: ignore[no-any-return]

    def _compared(self, result: Result) -> Divergence | None:
        """Where tokens leave those of transformers."""
        expected = result.tokens[PEER]
        for side in (PLAIN, *DRAFTERS):
            parted = first_divergence(  # fmt: skip
                result.prompt.tokens, expected, result.tokens[side],
                self._their_logits, lambda tokens: self._their_logits(tokens, 4), self._our_logits,
            )
            if parted is not None:
                return parted
        return None

    def _their_logits(self, tokens: Sequence[int], rows: int = 1) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([list(tokens)] * rows), logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]

    def _our_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        return self.decoder.prefill(self.decoder.new_cache(1), 0, tokens)


def mean_ratio(results: Sequence[Result], side: str, over: str) -> float:
    return math.exp(sum(math.log(r.ratio(side, over)) for r in results) / len(results))


def by_kind(results: Sequence[Result]) -> dict[str, list[Result]]:
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.prompt.kind, []).append(result)
    return kinds


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
    ]
    found = [f"{what}: {ratio:.2f} (at least {limit:g})" for what, ratio, limit in asked if ratio < limit]
    return found + [
        str(r.divergence) for r in results if r.divergence is not None and not r.divergence.is_tie
    ]


def worst(results: Sequence[Result], side: str) -> float:
    return min(result.ratio(side, PLAIN) for result in results)


def section(results: Sequence[Result], bytes_read: int, curve: str, new: int, repeats: int) -> str:
    """The whole section of the page."""
    header = ["kind of text", *(f"{side} tokens/s" for side in (PEER, PLAIN, *DRAFTERS)), f"plain / {PEER}"]
    for name in DRAFTERS:
        header += [f"{name} / {PEER}", f"{name} / plain", f"{name}: tokens a step"]
    rows = [_cells(kind, some) for kind, some in by_kind(results).items()]
    rows.append(_cells("**all**", results))
    fastest = max(result.per_second(PLAIN) for result in results)
    share = fastest * bytes_read / read_bandwidth()
    ties = [result.divergence for result in results if result.divergence is not None]
    short = missed(results)
    return "\n".join(
        [
            provenance("decoding"),
            "",
            _OPENING.format(new=new, prompts=len(results), repeats=repeats),
            "",
            table(header, rows),
            "",
            f"Worst prompt over plain: {', '.join(f'{name} {worst(results, name):.2f}' for name in DRAFTERS)}. "
            f"{len(results) - len(ties)} of {len(results)} prompts have the tokens of transformers to the end"
            + (f"; {len(ties)} part at: {'; '.join(map(str, ties))}." if ties else "."),
            "",
            (
                f"Plain decoding reads {bytes_read / 1e9:.2f} GB of weights a token: at its fastest {share:.0%} of "
                f"this machine's measured read bandwidth. Milliseconds of a step of {curve}."
            ),
            "",
            "Below what is asked: " + ("; ".join(short) if short else "nothing") + ".",
        ]
    )


def _cells(label: str, results: Sequence[Result]) -> list[str]:
    cells = [label]
    cells += [f"{median(r.per_second(side) for r in results):.1f}" for side in (PEER, PLAIN, *DRAFTERS)]
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
        speeds = ", ".join(f"{side} {last.per_second(side):.1f}" for side in (PEER, PLAIN, *DRAFTERS))
        parted = f"; parts at {last.divergence}" if last.divergence is not None else ""
        _console.print(
            f"{prompt.kind}, {len(prompt.tokens)} tokens: {speeds} tokens/s{parted}", highlight=False
        )
    weights = bench.decoder.program.weights
    bytes_read = sum(tensor.nbytes for tensor in {w.data_ptr(): w for w in weights.values()}.values())
    costs = bench.decoder.cost_curve
    curve = "/".join(map(str, costs.widths)) + " tokens: " + "/".join(f"{s * 1e3:.1f}" for s in costs.seconds)
    text = section(results, bytes_read, curve, options.new, options.repeats)
    print(text)
    check_limits(missed(results), options.check)


if __name__ == "__main__":
    main()
