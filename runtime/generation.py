"""Generation loops: prompts in, tokens out, one step after another over a cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tersor.ir.errors import InputError

from .decoder import Decoder
from .kv_cache import KvCache
from .sampling import Sampler, Sampling
from .speculation import Chain, Guesser, Policy, Statistics

# Called with the number of the prompt and its new token; what it returns is not looked at.
Stream = Callable[[int, int], object]


@dataclass(frozen=True)
class Stopping:
    """When a sequence has ended.

    Attributes:
        most: new tokens at most.
        ends: token ids behind which nothing follows; the id itself is part of the result.
        stops: whether the new tokens so far end it; asked after each.
    """

    most: int
    ends: Collection[int] = ()
    stops: Callable[[Sequence[int]], bool] | None = None

    def __post_init__(self) -> None:
        """Raises InputError where there is nothing to generate."""
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 1:
            raise InputError(
                f"max_new_tokens={self.most!r} is no number of tokens: give an integer from 1 up"
            )

    def over(self, new: Sequence[int]) -> bool:
        if len(new) >= self.most or new[-1] in self.ends:
            return True
        return self.stops is not None and self.stops(new)


@dataclass
class _Row:
    """A sequence that is being generated: prompt and new tokens, and who guesses what follows."""

    number: int
    prompt: list[int]
    sampler: Sampler
    guesser: Guesser | None = None
    policy: Policy | None = None
    new: list[int] = field(default_factory=list)
    over: bool = False

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stopping: Stopping,
    sampling: Sampling,
    stream: Stream | None = None,
    guess: Callable[[], Guesser] | None = None,
    statistics: Statistics | None = None,
) -> list[list[int]]:
    """New tokens for every prompt.

    Args:
        prompts: token ids, of any lengths.
        stream: told every token as soon as it is chosen.
        guess: makes who guesses ahead, one for each prompt.  Tokens are the same with guesses as without, drawn ones
            too: each is chosen from the model's own logits, and where it is what was guessed, the next is known
            already.
        statistics: what came of guesses is added to it.

    Raises:
        InputError: a prompt is empty, holds no token ids, or is longer than what the model takes.
        ExecutionError: the model fails, or gives no numbers.
    """
    rows = [_Row(number, list(prompt), Sampler(sampling, number)) for number, prompt in enumerate(prompts)]
    for row in rows:
        _check(decoder, row, stopping)
        if guess is not None:
            row.guesser, row.policy = guess(), Policy(decoder.cost_curve)
    loop = _Loop(
        decoder,
        stopping,
        stream or (lambda number, token: None),
        statistics or Statistics(),
    )
    loop.run(rows)
    return [row.new for row in rows]


@dataclass
class _Loop:
    """Rows that are generated together."""

    decoder: Decoder
    stopping: Stopping
    stream: Stream
    statistics: Statistics

    def run(self, rows: list[_Row]) -> None:
        cache = self.decoder.new_cache(len(rows))
        for place, row in enumerate(rows):
            if row.guesser is not None:
                row.guesser.extend(row.prompt)
            logits = self.decoder.prefill(cache, place, row.prompt)
            self._append(row, row.sampler.choose(row.tokens, logits))
        while not all(row.over for row in rows):
            self._step(cache, rows)

    def _step(self, cache: KvCache, rows: list[_Row]) -> None:
        """One run of the model: the last token of every row, and what was guessed to follow it."""
        started = time.perf_counter()
        chains = [self._guessed(row) for row in rows]
        checked = [
            [] if row.policy is None else row.policy.choose(some)
            for row, some in zip(rows, chains, strict=True)
        ]
        width = 1 + max(map(len, checked))
        guessed = time.perf_counter()
        given = [
            (row.new[-1:] + tokens + [row.new[-1]] * width)[:width]
            for row, tokens in zip(rows, checked, strict=True)
        ]
        cache.reserve(width)
        logits = self.decoder.try_step(cache, given)
        self.statistics.steps += 1
        self.statistics.drafting += guessed - started
        self.statistics.verifying += time.perf_counter() - guessed
        for place, (row, tokens) in enumerate(zip(rows, checked, strict=True)):
            before = len(row.new)
            # A row that has ended goes along, and nothing of it is kept.
            kept = 0 if row.over else 1 + self._accepted(row, tokens, logits[place])
            cache.commit(place, width, range(kept))
            if row.policy is not None and kept:
                row.policy.learn(chains[place], len(tokens), row.new[before:])
                if tokens:
                    self.statistics.count(len(tokens), kept - 1)

    def _guessed(self, row: _Row) -> Sequence[Chain]:
        """What may follow a row, as far as there is room for it."""
        if row.over or row.guesser is None or row.policy is None:
            return ()
        # The step itself gives one token more than its guesses.
        room = self.stopping.most - len(row.new) - 1
        return row.guesser.draft(min(row.policy.longest, room)) if room > 0 else ()

    def _accepted(self, row: _Row, guesses: list[int], logits: Tensor) -> int:
        """Choose tokens from ``logits [1 + guesses, vocabulary]`` as long as they are what was guessed."""
        for place in range(len(guesses) + 1):
            token = row.sampler.choose(row.tokens, logits[place])
            self._append(row, token)
            self.statistics.tokens += 1
            if row.over or place == len(guesses) or token != guesses[place]:
                return place
        raise AssertionError("the last logits always end it")

    def _append(self, row: _Row, token: int) -> None:
        row.new.append(token)
        if row.guesser is not None:
            row.guesser.extend([token])
        row.over = self.stopping.over(row.new)
        self.stream(row.number, token)


def _check(decoder: Decoder, row: _Row, stopping: Stopping) -> None:
    if not row.prompt:
        raise InputError(
            f"prompt {row.number} is empty: give at least one token, such as the one that begins a text"
        )
    if any(isinstance(token, bool) or not isinstance(token, int) for token in row.prompt):
        raise InputError(f"prompt {row.number} holds something else than token ids: give integers")
    longest = decoder.longest
    if longest is not None and len(row.prompt) + stopping.most > longest:
        raise InputError(
            f"prompt {row.number} has {len(row.prompt)} tokens and {stopping.most} are to follow; the model takes "
            f"{longest} together: shorten the prompt, or ask for fewer with max_new_tokens"
        )
