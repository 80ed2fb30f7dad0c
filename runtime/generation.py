"""Generation loops: prompts in, tokens out, one step after another over a cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from tersor.ir.errors import InputError

from .decoder import Decoder
from .sampling import Sampler, Sampling

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
    """A sequence that is being generated: prompt and new tokens."""

    number: int
    prompt: list[int]
    new: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.new


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stopping: Stopping,
    sampling: Sampling,
    stream: Stream | None = None,
) -> list[list[int]]:
    """New tokens for every prompt.

    Args:
        prompts: token ids, of any lengths.
        stream: told every token as soon as it is chosen.

    Raises:
        InputError: a prompt is empty, holds no token ids, or is longer than what the model takes.
        ExecutionError: the model fails, or gives no numbers.
    """
    rows = [_Row(number, list(prompt)) for number, prompt in enumerate(prompts)]
    for row in rows:
        _check(decoder, row, stopping)
    sampler = Sampler(sampling)
    _generate_together(decoder, rows, stopping, sampler, stream or (lambda number, token: None))
    return [row.new for row in rows]


def _generate_together(
    decoder: Decoder, rows: list[_Row], stopping: Stopping, sampler: Sampler, stream: Stream
) -> None:
    cache = decoder.new_cache(len(rows))
    active = []
    for place, row in enumerate(rows):
        _append(row, sampler.choose(row.tokens, decoder.prefill(cache, place, row.prompt)), stream)
        active.append(not stopping.over(row.new))
    while any(active):
        logits = decoder.step(cache, [[row.new[-1]] for row in rows])
        for place, row in enumerate(rows):
            # A row that has ended is fed its last token again until the others have.
            if active[place]:
                _append(row, sampler.choose(row.tokens, logits[place, -1]), stream)
                active[place] = not stopping.over(row.new)


def _append(row: _Row, token: int, stream: Stream) -> None:
    row.new.append(token)
    stream(row.number, token)


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
