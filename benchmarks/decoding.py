"""Generation of Gemma 3 270M on CPU, token by token, beside ``transformers.generate``.

python -m benchmarks.decoding                       writes the section `decoding` of docs/benchmarks.md
python -m benchmarks.decoding --new 32 --prompts 6  a quick look that writes nothing

Every prompt goes through all sides in turns; their tokens must be the same, or part at a tie.  Where a drafter seems to
lose on a prompt, both are measured again: one run says little on a machine that others use too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from rich.console import Console

import tersor
from examples.prompts import Prompt, prompts
from examples.real_data import prose
from tersor.passes.registry import find_methods
from tersor.passes.speculate.drafter import Drafter
from tersor.passes.speculate.insert import Speculate
from tersor.runtime.divergence import Divergence, first_divergence
from tersor.runtime.machine import read_bandwidth
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

from . import decoding_sides
from .decoding_sides import (
    DRAFTERS,
    Ours,
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
from .peers import genai_sides

PEER, LOOKUP, PLAIN = "transformers", "transformers lookup", "plain"
# Its own assisted generation, in which its first layers guess; no smaller model has this vocabulary.
ASSISTED, ASSISTING_LAYERS = "transformers assisted", 6
# Who guesses where nobody else is asked for, and who alone guesses at draws.
DEFAULT = Speculate().drafter.name
DRAWN, DRAWN_BY = "drawn", f"drawn, {DEFAULT}"
# What may not lose on any prompt, and against what.
HELD = (*((name, PLAIN) for name in DRAFTERS), (DRAWN_BY, DRAWN))
# Of all prompts together: plain over transformers; the best drafter over transformers, and over plain.
PLAIN_LIMIT, GUESSED_LIMIT, OVER_PLAIN_LIMIT = 2.0, 5.0, 2.4
# Of every kind of text, the best drafter over plain; of draws, over those without; of every prompt and any drafter.
KIND_LIMIT, DRAWN_LIMIT, PROMPT_LIMIT = 1.3, 1.3, 0.97
# How often a drafter that seems to lose on a prompt is run again, in turns with what it is held against.
_AGAIN = 4
# Seconds to the first token of a prompt of so many, over those of transformers.
FIRST, FIRST_LIMIT = 1000, 0.85
TEMPERATURE = 0.8
_INTRODUCTION = """\
Gemma 3 270M, float32, greedy, {new} new tokens behind each of {prompts} prompts, which go through all sides in turns;
tokens a second with the prompt's own time, median of {repeats} run(s). *plain*: `kv-cache`; the others: with
`speculate:drafter=...` of that name; all in ONNX Runtime, all with the tokens of `transformers.generate`, but where two
logits tie. *transformers lookup*: its own `prompt_lookup_num_tokens=8`. Drafters that remember earlier texts begin each
prompt without any. Ratios are geometric means over prompts. A drafter that costs more than it saves rests after a few
tries; what it is right about counts tries only."""

_console = Console(stderr=True)


@dataclass
class Result(decoding_sides.Result):
    """And what came of guesses, and where tokens of ours leave those of transformers, by the side."""

    parted: dict[str, Divergence] = field(default_factory=dict)
    guesses: dict[str, Statistics] = field(default_factory=dict)
    again: dict[str, float] = field(default_factory=dict)

    def pace(self, side: str, over: str) -> float:
        """How many times as fast as what it is held against; of more runs, where there are."""
        return self.again.get(side, self.ratio(side, over))

    @property
    def drawn_apart(self) -> bool:
        """Whether other tokens were drawn with guesses than without."""
        return self.tokens[DRAWN_BY] != self.tokens[DRAWN]

    def per_second(self, side: str) -> float:
        return len(self.tokens[side]) / median(self.seconds[side])


class Bench:
    """The model on all sides."""

    def __init__(self, new: int) -> None:
        self.new = new
        model, self.tokenizer, example = gemma()
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
            Ours(DRAWN_BY, decoder, DEFAULT, drawn),
        ]
        self.others: list[Side] = [
            Transformers(ASSISTED, model, {"assistant_early_exit": ASSISTING_LAYERS}),
            *genai_sides("fp32"),
        ]
        # A first text lowers what is needed and measures what steps cost; neither is done again.
        for side in (*self.greedy, *self.others):
            side.run([2, 5, 6, 5], 12)

    def run(self, prompt: Prompt, repeats: int) -> Result:
        result = Result(prompt)
        sides = (*self.greedy, *self.drawn)
        for _ in range(repeats):
            result.take_turn(sides, self.new)
        result.guesses = {s.name: s.counts for s in sides if isinstance(s, Ours) and s.drafter is not None}
        result.parted = self._compared(result)
        return result

    def over_peer(self, chosen: Sequence[Prompt]) -> dict[str, float]:
        """How many times as fast as transformers others are, on one prompt of each kind: some take long."""
        results = [decoding_sides.Result(prompt) for prompt in {p.kind: p for p in chosen}.values()]
        for result in results:
            result.take_turn((self.peer, *self.others), self.new)
        return {side.name: mean_ratio(results, side.name, PEER) for side in self.others}

    def settle(self, results: Sequence[Result]) -> None:
        """Measure again what seems to lose, the most first, until something does or nothing is left."""
        sides = {side.name: side for side in (*self.greedy, *self.drawn)}
        for name, over in HELD:
            while (last := worst_of(results, name, over)).pace(name, over) < PROMPT_LIMIT:
                if name in last.again:
                    break
                turns = decoding_sides.Result(last.prompt)
                for _ in range(_AGAIN):
                    turns.take_turn((sides[over], sides[name]), self.new)
                last.again[name] = turns.ratio(name, over)
                found = f"{last.ratio(name, over):.2f} at first, {last.again[name]:.2f} of {_AGAIN} runs"
                _console.print(f"{last.prompt.kind}, {name} over {over}: {found}", highlight=False)

    def _compared(self, result: Result) -> dict[str, Divergence]:
        """Where tokens leave those of transformers: each side by itself, as a tie of one excuses no other."""
        found: dict[str, Divergence] = {}
        known: dict[tuple[int, ...], Divergence | None] = {}
        for name in (PLAIN, *DRAFTERS):
            tokens = tuple(result.tokens[name])
            if tokens not in known:
                # As a rule all sides part alike.
                known[tokens] = first_divergence(
                    result.prompt.tokens,
                    result.tokens[PEER],
                    tokens,
                    self.peer.logits,
                    lambda tokens: self.peer.logits(tokens, 4),
                    self.plain.logits,
                )
            parted = known[tokens]
            if parted is not None:
                found[name] = parted
        return found


def best_drafter(results: Sequence[Result]) -> str:
    """The one that is fastest over all prompts."""
    return max(DRAFTERS, key=lambda name: mean_ratio(results, name, PLAIN))


def missed(results: Sequence[Result], first: dict[str, float]) -> list[str]:
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
        *(
            (f"{name} over {over} on the worst prompt", worst(results, name, over), PROMPT_LIMIT)
            for name, over in HELD
        ),
        (f"draws with {DEFAULT} over draws", mean_ratio(results, DRAWN_BY, DRAWN), DRAWN_LIMIT),
    ]
    found = [f"{what}: {ratio:.2f} (at least {limit:g})" for what, ratio, limit in asked if ratio < limit]
    if first[PLAIN] / first[PEER] > FIRST_LIMIT:
        found.append(f"time to first token: {first[PLAIN] / first[PEER]:.2f} (at most {FIRST_LIMIT})")
    return found + [
        f"{name} {parted}"
        for result in results
        for name, parted in result.parted.items()
        if not parted.is_tie
    ]


def told(parted: Mapping[str, Divergence]) -> str:
    """Where sides part on one prompt, those together that part alike."""
    sides: dict[str, list[str]] = {}
    for name, divergence in parted.items():
        sides.setdefault(str(divergence), []).append(name)
    return "; ".join(f"{', '.join(names)}: {where}" for where, names in sides.items())


def worst_of(results: Sequence[Result], side: str, over: str) -> Result:
    return min(results, key=lambda result: result.pace(side, over))


def worst(results: Sequence[Result], side: str, over: str) -> float:
    return worst_of(results, side, over).pace(side, over)


def section(
    results: Sequence[Result],
    first: dict[str, float],
    others: dict[str, float],
    bytes_read: int,
    curve: str,
    new: int,
    repeats: int,
) -> str:
    """The whole section of the page."""
    best = best_drafter(results)
    columns = (PEER, LOOKUP, PLAIN, best)
    header = ["kind of text", *(f"{side} tokens/s" for side in columns)]
    header += [f"plain / {PEER}", f"{best} / {PEER}", f"{best} / plain", f"draws: {DEFAULT} / without"]
    pairs = ((PLAIN, PEER), (best, PEER), (best, PLAIN), (DRAWN_BY, DRAWN))
    rows = [
        [
            kind,
            *(f"{median(r.per_second(side) for r in some):.1f}" for side in columns),
            *(f"{mean_ratio(some, *pair):.2f}" for pair in pairs),
        ]
        for kind, some in (*by_kind(results).items(), ("**all**", results))
    ]
    fastest = max(result.per_second(PLAIN) for result in results)
    share = fastest * bytes_read / read_bandwidth()
    parted = [told(result.parted) for result in results if result.parted]
    short = missed(results, first)
    return "\n".join(
        [
            provenance("decoding"),
            "",
            _INTRODUCTION.format(new=new, prompts=len(results), repeats=repeats),
            "",
            table(header, rows),
            "",
            (
                f"Draws are at temperature {TEMPERATURE}, with one seed; they are those without guesses in "
                f"{sum(not r.drawn_apart for r in results)} of {len(results)} prompts. On "
                f"the worst prompt with guesses / without: {worst(results, DRAWN_BY, DRAWN):.2f}. Of prompts on which "
                f"something was below {PROMPT_LIMIT} of plain, that is the median of {_AGAIN} runs more."
            ),
            "",
            (
                f"Others, on one prompt of each kind, times as fast as {PEER}: "
                + "; ".join(f"{name} {ratio:.2f}" for name, ratio in others.items())
                + f". *Assisted*: `assistant_early_exit={ASSISTING_LAYERS}`, as no smaller model has this vocabulary."
            ),
            "",
            table(["drafter", *_COLUMNS], [_drafter_cells(name, results) for name in DRAFTERS]),
            "",
            f"{len(results) - len(parted)} of {len(results)} prompts have the tokens of transformers to the end"
            + (f"; {len(parted)} part at: {'; '.join(parted)}." if parted else "."),
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


_COLUMNS = (
    "/ plain", "worst prompt / plain", "tokens a step", "steps that guess", "right a guess", "ms a step", "ms guessing",
    "its paper",
)  # fmt: skip


def _drafter_cells(name: str, results: Sequence[Result]) -> list[str]:
    """What came of a drafter over all prompts."""
    counts = [result.guesses[name] for result in results]
    steps, tokens, guesses = (
        sum(getattr(c, what) for c in counts) for what in ("steps", "tokens", "guesses")
    )
    drafted, right = sum(c.drafted[0] for c in counts if c.drafted), sum(sum(c.accepted) for c in counts)
    verifying, drafting = sum(c.verifying for c in counts), sum(c.drafting for c in counts)
    return [
        name,
        f"{mean_ratio(results, name, PLAIN):.2f}",
        f"{worst(results, name, PLAIN):.2f}",
        f"{tokens / steps:.2f}",
        f"{drafted / steps:.0%}",
        f"{right / guesses:.0%}" if guesses else "",
        f"{verifying / steps * 1e3:.1f}",
        f"{drafting / steps * 1e3:.1f}",
        find_methods(Drafter)[name].reported,
    ]


def main() -> None:
    options = settings("decoding", __doc__.split("\n")[0])
    torch.set_grad_enabled(False)
    bench = Bench(options.new)
    results = []
    chosen = prompts(bench.tokenizer, prose())
    for prompt in spread(chosen, options.prompts):
        results.append(bench.run(prompt, options.repeats))
        last = results[-1]
        speeds = ", ".join(f"{side} {last.per_second(side):.1f}" for side in last.tokens)
        parted = f"; parts at {told(last.parted)}" if last.parted else ""
        _console.print(
            f"{prompt.kind}, {len(prompt.tokens)} tokens: {speeds} tokens/s{parted}", highlight=False
        )
    bench.settle(results)
    others = bench.over_peer(chosen)
    weights = bench.decoder.program.weights
    bytes_read = sum(tensor.nbytes for tensor in {w.data_ptr(): w for w in weights.values()}.values())
    costs = bench.decoder.cost_curve
    curve = "/".join(map(str, costs.widths)) + " tokens: " + "/".join(f"{s * 1e3:.1f}" for s in costs.seconds)
    long: Any = chosen[-1].tokens[:FIRST]
    first = first_token([bench.peer, bench.plain], long)
    text = section(results, first, others, bytes_read, curve, options.new, options.repeats)
    put_section("decoding", text, bool(options.print or options.prompts), elsewhere=True)
    check_limits(missed(results, first), options.check)


if __name__ == "__main__":
    main()
