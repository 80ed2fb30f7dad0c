"""What generates in the benchmarks of decoding, in turns: Tersor with every drafter, and its peers."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any, Protocol, TypeVar

import torch

from examples.prompt_tokens import FILE as PROMPT_TOKENS
from examples.prompts import Prompt
from examples.real_models import gemma3_270m
from tersor.ir.straight import straight
from tersor.passes.registry import find_methods
from tersor.passes.spec import parse_spec
from tersor.passes.speculate.drafter import Drafter
from tersor.passes.speculate.insert import Speculate
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.decoder import Decoder
from tersor.runtime.draft_models import DraftModels
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

DRAFTERS = tuple(find_methods(Drafter))
# Files of the benchmarks' own that drafters are given; all else is as it is where nobody asks otherwise.
_GIVEN: dict[str, dict[str, Any]] = {"ppd": {"prompts": str(PROMPT_TOKENS)}}


def drafter(spec: str) -> Drafter:
    """That of a name, or of a spec such as ``self,exits=3+6``."""
    if spec in DRAFTERS:
        return find_methods(Drafter)[spec](**_GIVEN.get(spec, {}))
    pass_ = parse_spec(f"speculate:drafter={spec}")
    assert isinstance(pass_, Speculate)
    return pass_.drafter


class Side(Protocol):
    """Something that generates; ``name`` is its column."""

    name: str

    def run(self, prompt: list[int], new: int) -> list[int]:
        """So many new tokens behind a prompt, past the end of a text too."""


def settings(name: str, purpose: str, **flags: str) -> argparse.Namespace:
    """What the command line of a benchmark of decoding says; ``flags`` are more options of it, with their help.

    Attributes of the result: ``new`` tokens, ``repeats``, ``prompts`` (how many; 0 for all), ``print``, ``check``.
    """
    parser = argparse.ArgumentParser(prog=f"benchmarks.{name}", description=purpose)
    parser.add_argument("--new", type=int, default=128, help="new tokens behind each prompt")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each prompt and side")
    parser.add_argument("--prompts", type=int, default=0, help="only so many, from all kinds; writes nothing")
    parser.add_argument("--print", action="store_true", help="print the section and write nothing")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a stated limit is missed")
    for flag, told in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=told)
    return parser.parse_args()


def gemma() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Gemma 3 270M, which goes on past the end of a text, its tokenizer, and inputs to capture it with."""
    model: Any
    model, tokenizer = gemma3_270m()
    # What generate is not told it takes from here.
    model.generation_config.eos_token_id = None
    ids = torch.randint(5, 1000, (1, 24))
    return model, tokenizer, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def spread(chosen: Sequence[Prompt], count: int) -> Sequence[Prompt]:
    """``count`` of the prompts, from all kinds; all of them for 0."""
    return chosen[:: max(1, len(chosen) // count)][:count] if count else chosen


@dataclass
class Result:
    """One prompt: seconds of every side, and its tokens."""

    prompt: Prompt
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def take_turn(self, sides: Iterable[Side], new: int) -> None:
        """Let every side generate once."""
        for side in sides:
            started = time.perf_counter()
            self.tokens[side.name] = side.run(self.prompt.tokens, new)
            self.seconds.setdefault(side.name, []).append(time.perf_counter() - started)

    def ratio(self, side: str, over: str) -> float:
        """How many times as fast ``side`` is as ``over``."""
        return median(b / a for a, b in zip(self.seconds[side], self.seconds[over], strict=True))


def first_token(sides: Sequence[Side], prompt: list[int], repeats: int = 5) -> dict[str, float]:
    """Seconds to the first token of every side, the median of turns."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(repeats + 1):
        for side in sides:
            started = time.perf_counter()
            side.run(prompt, 1)
            seconds[side.name].append(time.perf_counter() - started)
    # The first turn warms up.
    return {name: median(times[1:]) for name, times in seconds.items()}


AnyResult = TypeVar("AnyResult", bound=Result)


def mean_ratio(results: Sequence[Result], side: str, over: str) -> float:
    """The geometric mean over prompts."""
    return math.exp(sum(math.log(result.ratio(side, over)) for result in results) / len(results))


def by_kind(results: Sequence[AnyResult]) -> dict[str, list[AnyResult]]:
    kinds: dict[str, list[AnyResult]] = {}
    for result in results:
        kinds.setdefault(result.prompt.kind, []).append(result)
    return kinds


@dataclass
class Transformers:
    """``transformers.generate``, greedy; ``options`` are its own."""

    name: str
    model: Any
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, prompt: list[int], new: int) -> list[int]:
        ids = torch.tensor([prompt])
        fixed = dict(do_sample=False, max_new_tokens=new, pad_token_id=0)
        found = self.model.generate(ids, attention_mask=torch.ones_like(ids), **fixed, **self.options)
        return found[0, len(prompt) :].tolist()

    def logits(self, tokens: Sequence[int], rows: int = 1) -> torch.Tensor:
        """Behind the last of ``tokens``, computed beside as many rows as there are."""
        ids = torch.tensor([list(tokens)] * rows)
        return self.model(input_ids=ids, logits_to_keep=1).logits[0, -1]


@dataclass
class Ours:
    """Tersor; with the drafter of that name or spec, or without one.

    Attributes:
        curve: what steps are taken to cost; as measured by default.
        counts: what came of guesses in the last run.
    """

    name: str
    decoder: Decoder
    drafter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    curve: CostCurve | None = None
    counts: Statistics = field(default_factory=Statistics)

    def run(self, prompt: list[int], new: int) -> list[int]:
        return self.together([prompt], new)[0]

    def together(self, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
        """So many new tokens behind each of several prompts, side by side in one batch."""
        self.counts = Statistics()
        guess: Callable[[Any], Any] | None = None
        if self.drafter is not None:
            # A new one for each prompt: what it remembers of other texts is no merit of this one.
            guess = drafter(self.drafter).begin
        return generate(
            self._checking,
            prompts,
            Stopping(new),
            self.sampling,
            None,
            guess,
            self.counts,
            models=self._models,
        )

    @cached_property
    def _checking(self) -> Decoder:
        """``decoder``, or one of the Program that the drafter makes of its own."""
        program, curve = self.decoder.program, self.curve
        prepared = program if self.drafter is None else drafter(self.drafter).prepared(program)
        if prepared is program and curve is None:
            return self.decoder
        return Decoder(prepared, self.decoder.lower, None if curve is None else lambda *_: curve)

    @cached_property
    def _models(self) -> DraftModels | None:
        """What the drafter guesses with, lowered once."""
        if self.drafter is None:
            return None
        return DraftModels(drafter(self.drafter).models(straight(self.decoder.program)), self.decoder.lower)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Behind the last of ``tokens``, computed at once."""
        return self.decoder.prefill(self.decoder.new_cache(1), 0, tokens)
