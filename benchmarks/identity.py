"""Whether Gemma 3 270M generates the tokens of ``transformers``, with every drafter, alone and in batches of four.

python -m benchmarks.identity                       writes its section of docs/benchmarks.md
python -m benchmarks.identity --new 16 --prompts 8  a quick look
python -m benchmarks.identity --rest                drafters rest where they do not pay; writes nothing

Where tokens part, the two logits must be closer there than what rounding makes of them: see `tersor why`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console

import tersor
from examples.prompts import Prompt, prompts
from examples.real_data import prose
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.divergence import Divergence, first_divergence

from .decoding_sides import DRAFTERS, Ours, Transformers, gemma, settings, spread
from .page import check_limits, provenance, put_section, table

PLAIN, TOGETHER = "plain", 4
_INTRODUCTION = """\
Gemma 3 270M, float32, greedy, {new} new tokens behind each of {prompts} prompts: how many of them have the tokens of
`transformers.generate` to the end, each alone and {together} at a time, without guesses and with every drafter. A tie
is where tokens part and the two logits lie closer together than twice what a batch of four, in place of one, moves
`transformers`' own logits by."""
# Of a run in which nobody rests.
_EAGER = """\

Guesses are weighed here as if a step of one token took a second and one of nine a tenth more, so that drafters guess
far oftener than pays; four at a time they share that step. *Right*: of the guesses that were checked, those that the
model said too."""

# Ways of guessing that drafters do not take by default: nested models, and two levels over few chunks of the cache.
_OTHERS = ("self,exits=3+6+9", "model,exits=6+12", "triforce,budget=128,refresh=8,under=6")
# Milliseconds of steps, beside which making guesses takes no time, and checking a few of them little.
_SLOW = CostCurve((1, 9, 33), (1000.0, 1100.0, 4000.0))

_console = Console(stderr=True)


@dataclass
class Found:
    """What a side made of all prompts.

    Attributes:
        parted: where its tokens leave those of transformers, by the number of the prompt.
        guesses, right: how many were checked, and how many of them were the tokens that followed.
    """

    side: str
    rows: int
    parted: dict[int, Divergence] = field(default_factory=dict)
    guesses: int = 0
    right: int = 0

    @property
    def bugs(self) -> list[str]:
        place = f"{self.side}, {self.rows} at a time"
        return [f"{place}, prompt {n}: {d}" for n, d in self.parted.items() if not d.is_tie]


def compare(
    chosen: Sequence[Prompt], expected: Sequence[list[int]], side: Ours, rows: int, peer: Transformers
) -> Found:
    """Let a side generate behind all prompts, so many at a time."""
    found = Found(side.name, rows)
    new = len(expected[0])
    for start in range(0, len(chosen), rows):
        some = chosen[start : start + rows]
        made = side.together([prompt.tokens for prompt in some], new)
        found.guesses += side.counts.guesses
        found.right += sum(side.counts.accepted)
        for number, (prompt, tokens) in enumerate(zip(some, made, strict=True), start):
            parted = first_divergence(
                prompt.tokens, expected[number], tokens, peer.logits, lambda t: peer.logits(t, 4), side.logits
            )
            if parted is not None:
                found.parted[number] = parted
    return found


def section(all_found: Sequence[Found], count: int, new: int, eager: bool = True) -> str:
    """The whole section of the page; ``eager``: nobody rested."""
    sides = dict.fromkeys(found.side for found in all_found)
    cells = {(found.side, found.rows): found for found in all_found}
    rows = [
        [
            side,
            *(text for n in (1, TOGETHER) for text in (_cell(cells[side, n], count), _right(cells[side, n]))),
        ]
        for side in sides
    ]
    ties = {f"prompt {n}: {d}" for found in all_found for n, d in found.parted.items() if d.is_tie}
    bugs = [bug for found in all_found for bug in found.bugs]
    return "\n".join(
        [
            provenance("identity"),
            "",
            _INTRODUCTION.format(new=new, prompts=count, together=TOGETHER),
            *((_EAGER,) if eager else ()),
            "",
            table(["drafter", "one at a time", "right", f"{TOGETHER} at a time", "right"], rows),
            "",
            "Ties: " + ("; ".join(sorted(ties)) if ties else "none") + ".",
            "",
            "Parted elsewhere: " + ("; ".join(bugs) if bugs else "nowhere") + ".",
        ]
    )


def _cell(found: Found, count: int) -> str:
    ties = sum(d.is_tie for d in found.parted.values())
    bugs = len(found.parted) - ties
    return (
        f"{count - len(found.parted)} of {count}"
        + f", {ties} at ties" * bool(ties)
        + f", {bugs} WRONG" * bool(bugs)
    )


def _right(found: Found) -> str:
    return f"{found.right} of {found.guesses}" if found.side != PLAIN else ""


def idle(all_found: Sequence[Found]) -> list[str]:
    """Drafters whose guesses put nothing to the test."""
    return [
        f"{found.side}, {found.rows} at a time: none of {found.guesses} guesses was right"
        for found in all_found
        if found.side != PLAIN and not found.right
    ]


def main() -> None:
    rest = "let drafters rest where guesses do not pay on this machine; write nothing"
    options = settings("identity", __doc__.split("\n")[0], rest=rest)
    torch.set_grad_enabled(False)
    model, tokenizer, example = gemma()
    decoder = tersor.optimize_model(
        model, ["kv-cache", "speculate"], "onnx", example_inputs=example
    ).generator.decoder
    chosen = spread(prompts(tokenizer, prose()), options.prompts)
    peer = Transformers("transformers", model)
    expected = []
    for prompt in chosen:
        expected.append(peer.run(prompt.tokens, options.new))
        _console.print(f"transformers, {prompt.kind}, {len(prompt.tokens)} tokens", highlight=False)
    all_found = []
    for name in (PLAIN, *DRAFTERS, *_OTHERS):
        # One after another: models that guess are as large as the one that checks.
        drafter = None if name == PLAIN else name
        side = Ours(name, decoder, drafter, curve=_SLOW if drafter and not options.rest else None)
        for rows in (1, TOGETHER):
            found = compare(chosen, expected, side, rows, peer)
            all_found.append(found)
            told = f"{_cell(found, len(chosen))}, of {found.guesses} guesses {found.right} right"
            _console.print(f"{name}, {rows} at a time: {told}", highlight=False)
    keep = bool(options.print or options.prompts or options.rest)
    put_section("identity", section(all_found, len(chosen), options.new, not options.rest), keep)
    bugs = [bug for found in all_found for bug in found.bugs]
    check_limits(bugs + ([] if options.rest else idle(all_found)), options.check)


if __name__ == "__main__":
    main()
