"""Generation loops: prompts in, tokens out, one step after another over a cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from torch import Tensor

from tersor.codegen.text_limits import check_ids
from tersor.ir.drafting import Draft, Drafting, Outlook
from tersor.ir.errors import InputError

from .decoder import Decoder
from .draft_models import DraftModels, Place, Row
from .kv_cache import KvCache
from .probing import Gains, ranked_probes
from .processors import Text
from .sampling import Sampler, Sampling
from .speculation import Policy, Rates, Statistics
from .tree import TokenTree, side_by_side

# Called with the number of the prompt and its new token; what it returns is not looked at.
Stream = Callable[[int, int], object]


@dataclass(frozen=True)
class Stopping:
    """When a sequence has ended.

    Attributes:
        most: new tokens at most; None where ``longest`` alone says it.
        ends: token ids behind which nothing follows; the id itself is part of the result.
        stops: whether the tokens so far, the prompt's before the new ones, end it with the last; asked after each.
        longest: tokens at most, the prompt's among them; None where ``most`` alone says it.
    """

    most: int | None
    ends: Collection[int] = ()
    stops: Callable[[Sequence[int]], bool] | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError where there is nothing to generate."""
        name, count = "max_new_tokens", self.most
        if self.most is None and self.longest is not None:
            name, count = "max_length", self.longest
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise InputError(f"{name}={count!r} is no number of tokens: give an integer from 1 up")

    def left(self, prompt: Sequence[int], new: Sequence[int] = ()) -> int:
        """How many tokens may follow."""
        most = None if self.most is None else self.most - len(new)
        if self.longest is None:
            assert most is not None
            return most
        room = self.longest - len(prompt) - len(new)
        return room if most is None else min(most, room)

    def over(self, prompt: Sequence[int], new: Sequence[int]) -> bool:
        if self.left(prompt, new) < 1 or new[-1] in self.ends:
            return True
        return self.stops is not None and self.stops([*prompt, *new])


@dataclass
class _Row:
    """A sequence that is being generated: prompt and new tokens, and who guesses what follows.

    Attributes:
        gains: what probes gave it.  probed: how many stood behind what was its last token at the last step.
    """

    number: int
    prompt: list[int]
    sampler: Sampler
    gains: Gains
    probed: int = 0
    place: Place = field(init=False)
    guesser: Drafting | None = None
    rates: Rates = field(default_factory=Rates)
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
    guess: Callable[[Mapping[str, Row]], Drafting] | None = None,
    statistics: Statistics | None = None,
    batch: int | None = None,
    models: DraftModels | None = None,
) -> list[list[int]]:
    """New tokens for every prompt.

    Args:
        prompts: token ids, of any lengths.
        stream: told every token as soon as it is chosen.
        guess: makes who guesses ahead, one for each prompt, of ``models`` at work on it.  Tokens are the same with
            guesses as without, drawn ones too: each is chosen from the model's own logits, and where it is what was
            guessed, the next is known already.
        statistics: what came of guesses is added to it.
        batch: prompts under way at once, all of them by default; when one is over, the next begins in its place.

    Raises:
        InputError: a prompt is empty, holds no token ids, or is longer than what the model takes; or the model was
            not made to check guesses.
        ExecutionError: the model fails, or gives no numbers.
    """
    if guess is not None and decoder.stepping.branches is None:
        raise InputError("this model checks no guesses: convert it with -p kv-cache -p speculate")
    rows = [
        _Row(number, list(prompt), _sampler(sampling, number, prompt, stopping), Gains(decoder.probes))
        for number, prompt in enumerate(prompts)
    ]
    for row in rows:
        _check(decoder, row, stopping)
        row.sampler.check(decoder.vocabulary)
    loop = _Loop(
        decoder,
        stopping,
        stream or (lambda number, token: None),
        statistics or Statistics(),
        guess,
        models or DraftModels({}, decoder.lower),
        None if guess is None else Policy(decoder.cost_curve),
    )
    loop.run(rows, min(len(rows), batch or len(rows)))
    return [row.new for row in rows]


@dataclass
class _Loop:
    """Rows that are generated together."""

    decoder: Decoder
    stopping: Stopping
    stream: Stream
    statistics: Statistics
    guess: Callable[[Mapping[str, Row]], Drafting] | None
    models: DraftModels
    policy: Policy | None

    def run(self, rows: Sequence[_Row], batch: int) -> None:
        """All of them, at most ``batch`` at once."""
        cache = self.decoder.new_cache(batch)
        waiting, under_way = deque(rows[batch:]), list(rows[:batch])
        for place, row in enumerate(under_way):
            self._begin(cache, place, row)
        while under_way:
            if not any(row.over for row in under_way):
                self._step(cache, under_way)
            for place in reversed(range(len(under_way))):
                if under_way[place].over:
                    cache.remove(place)
                    # As in the cache, the last takes its place.
                    under_way[place] = under_way[-1]
                    under_way[place].place.row = place
                    under_way.pop()
            while waiting and len(under_way) < batch:
                under_way.append(waiting.popleft())
                self._begin(cache, cache.add(), under_way[-1])

    def _begin(self, cache: KvCache, place: int, row: _Row) -> None:
        row.place = Place(cache, place)
        if self.guess is not None:
            row.guesser = self.guess(self.models.rows(row.place))
            row.guesser.extend(row.prompt)
        logits = self.decoder.prefill(cache, place, row.prompt)
        self._append(row, row.sampler.choose(row.tokens, logits))

    def _step(self, cache: KvCache, rows: Sequence[_Row]) -> None:
        """One run of the model: the last token of every row, and what is guessed to follow it."""
        started = time.perf_counter()
        most = self._most_guesses(cache, len(rows))
        guessed = [TokenTree.of(row.new[-1], self._draft(row, len(rows), most)) for row in rows]
        checked = self._chosen(rows, guessed, most)
        tokens, branching = side_by_side(checked)
        cache.reserve(len(tokens[0]))
        drafting = time.perf_counter() - started
        logits = self.decoder.try_step(cache, tokens, branching)
        self.statistics.steps += 1
        self.statistics.drafting += drafting
        self.statistics.verifying += time.perf_counter() - started - drafting
        started = time.perf_counter()
        gained = 0
        for place, (row, tree) in enumerate(zip(rows, checked, strict=True)):
            row.rates.watch(guessed[place])
            path = self._accepted(row, tree, logits[place])
            cache.commit(place, len(tokens[0]), path)
            gained += len(path)
            if row.guesser is not None:
                known = 1 + tree.guesses
                row.guesser.observe(tree.tokens[:known], logits[place, :known])
                self._probed(row, tree, path, logits[place], len(rows))
            if len(tree) > 1:
                self.statistics.count(tree, len(path) - 1)
        if self.policy is not None:
            learning = time.perf_counter() - started
            self.statistics.drafting += learning
            self.policy.learn(len(rows), len(tokens[0]) - 1, gained, drafting + learning)

    def _most_guesses(self, cache: KvCache, rows: int) -> int:
        """How many of every row a step may check."""
        if self.policy is None:
            return 0
        return min(self.policy.longest(rows), self.decoder.most_new(cache) - 1)

    def _draft(self, row: _Row, rows: int, most: int) -> Sequence[Draft]:
        """What may follow a row, as far as there is room for it."""
        if row.guesser is None or self.policy is None:
            return ()
        room = min(most, self._room(row))
        return row.guesser.draft(room, _Outlook(row, rows, self.policy)) if room > 0 else ()

    def _room(self, row: _Row) -> int:
        """How many guesses of a row may be right: the step itself gives one token more."""
        return self.stopping.left(row.prompt, row.new) - 1

    def _chosen(self, rows: Sequence[_Row], guessed: Sequence[TokenTree], most: int) -> Sequence[TokenTree]:
        """Of what was guessed, what is worth checking."""
        if self.policy is None:
            return guessed
        ranked = [row.rates.ranked(tree, most) for row, tree in zip(rows, guessed, strict=True)]
        if self.decoder.rounds_activations:
            # Between siblings the tokens of a path lie elsewhere than in plain decoding.
            ranked = [tree.one_path(*found) for tree, found in zip(guessed, ranked, strict=True)]
        count = self.policy.guesses([chances for _, chances in ranked])
        trees = [tree.part(nodes[:count]) for tree, (nodes, _) in zip(guessed, ranked, strict=True)]
        if self.decoder.probes:
            self._add_probes(self.policy, rows, trees, [chances[:count] for _, chances in ranked], most)
        return trees

    def _add_probes(
        self,
        policy: Policy,
        rows: Sequence[_Row],
        trees: Sequence[TokenTree],
        chances: Sequence[list[float]],
        most: int,
    ) -> None:
        """Put those behind guesses, of which each is right with ``chances``, that the next step gains most by."""
        guesses = max(map(len, chances))
        ranked = [
            ranked_probes(tree, known, row.gains, self._room(row), self.decoder.probes)[: most - guesses]
            for tree, known, row in zip(trees, chances, rows, strict=True)
        ]
        worth = [[gain for gain, _ in row] for row in ranked]
        count = policy.probes(guesses, len(rows) + sum(map(sum, chances)), worth)
        for tree, places in zip(trees, ranked, strict=True):
            for _, node in places[:count]:
                tree.probe(node)

    def _probed(self, row: _Row, tree: TokenTree, path: list[int], logits: Tensor, rows: int) -> None:
        """Tell a row what the model said behind probes at its end, and learn what those of the last step gave."""
        policy = self.policy
        if not self.decoder.probes or row.guesser is None or policy is None:
            return
        plain = policy.cost(rows, 0)
        row.gains.learn(row.probed, tree, path, lambda guesses: policy.cost(rows, guesses) / plain)
        said = tree.probes.get(path[-1], [])
        row.probed = len(said)
        row.guesser.probed(logits[said])

    def _accepted(self, row: _Row, tree: TokenTree, logits: Tensor) -> list[int]:
        """Choose tokens from ``logits [nodes, vocabulary]`` as long as they were guessed; the nodes that were right."""
        path = [0]
        while True:
            token = row.sampler.choose(row.tokens, logits[path[-1]])
            self._append(row, token)
            self.statistics.tokens += 1
            node = tree.children[path[-1]].get(token)
            if row.over or node is None:
                return path
            path.append(node)

    def _append(self, row: _Row, token: int) -> None:
        row.new.append(token)
        row.rates.see(token)
        if row.guesser is not None:
            row.guesser.extend([token])
        row.over = self.stopping.over(row.prompt, row.new)
        self.stream(row.number, token)


@dataclass(frozen=True)
class _Outlook(Outlook):
    """What is known of the step that guesses of one of several rows are for."""

    row: _Row
    rows: int
    policy: Policy

    @property
    def plain(self) -> float:
        return self.policy.cost(self.rows, 0) / self.rows

    def choose(self, ahead: Sequence[int], logits: Tensor) -> int:
        return self.row.sampler.choose([*self.row.tokens, *ahead], logits)

    def noisy(self, ahead: int, tokens: Sequence[int], scores: Sequence[float]) -> list[float]:
        return self.row.sampler.noisy(len(self.row.tokens) + ahead, tokens, scores)

    def worth(self, draft: Draft, seconds: float) -> bool:
        return self.policy.worth(self.rows, len(draft.tokens), self.row.rates.of_draft(draft), seconds)


def _sampler(sampling: Sampling, number: int, prompt: Sequence[int], stopping: Stopping) -> Sampler:
    return Sampler(sampling, number, Text(prompt, len(prompt) + stopping.left(prompt), sorted(stopping.ends)))


def _check(decoder: Decoder, row: _Row, stopping: Stopping) -> None:
    if not row.prompt:
        raise InputError(
            f"prompt {row.number} is empty: give at least one token, such as the one that begins a text"
        )
    if any(isinstance(token, bool) or not isinstance(token, int) for token in row.prompt):
        raise InputError(f"prompt {row.number} holds something else than token ids: give integers")
    check_ids(row.prompt, decoder.largest_id, f"prompt {row.number}")
    left, longest = stopping.left(row.prompt), decoder.longest
    if left < 1:
        raise InputError(
            f"prompt {row.number} has {len(row.prompt)} tokens, and max_length={stopping.longest} leaves no room for "
            "more: give max_new_tokens"
        )
    # The last of all is never read.
    if longest is not None and len(row.prompt) + left - 1 > longest:
        raise InputError(
            f"prompt {row.number} has {len(row.prompt)} tokens and {left} are to follow; the model reads "
            f"{longest} at most, all but the last: shorten the prompt, or ask for fewer with max_new_tokens"
        )
