"""A Program that is run in steps, lowered for the kinds of steps that decoding takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from tersor.codegen.target import Executable
from tersor.codegen.text_limits import largest_id, most_tokens
from tersor.ir.errors import InputError
from tersor.ir.fix_sizes import fix_sizes
from tersor.ir.program import Program
from tersor.ir.prompt_tokens import prompt_count
from tersor.ir.stepping import Branches
from tersor.ir.straight import straight

from .cost_curve import WIDTHS, CostCurve
from .kv_cache import KvCache
from .tree import Branching, in_a_row

# Tokens that lie before those of a step that is measured.
_MEASURED_BEHIND = 32

Lower = Callable[[Program], Executable]
Keep = Callable[[Callable[[], CostCurve], Callable[[], float]], CostCurve]


class Decoder:
    """Runs prompts and new tokens over a cache.

    What a target can do depends on how many rows there are and how many new tokens each has, so that several forms of
    one Program are lowered, each when it is first needed: for one row, for one new token in each of several, for any.
    """

    def __init__(self, program: Program, lower: Lower, keep: Keep | None = None) -> None:
        """Of a Program that is run in steps.

        Args:
            keep: gives what a measurement of the cost of steps has found before, or else measures; it may ask what a
                step of one token costs now.

        Raises:
            InputError: it is not.
        """
        if program.stepping is None:
            raise InputError("this model keeps no cache: convert it with -p kv-cache, or passes=['kv-cache']")
        self.program, self.stepping = program, program.stepping
        self._logits = program.returned[0].name
        self._states = self.stepping.driven | self.stepping.results
        self.lower = lower
        self._dtypes = {spec.name: spec.dtype for spec in program.inputs}
        self._shapes = {spec.name: spec.shape for spec in program.inputs}
        self._forms: dict[str, Executable] = {}
        self._keep = keep or (lambda measure, now: measure())
        self._curve: CostCurve | None = None

    @property
    def cost_curve(self) -> CostCurve:
        """What steps of several tokens of one row cost here; measured when it is first asked for."""
        if self._curve is None:
            self._curve = self._keep(self._measured_curve, lambda: self.step_seconds)
        return self._curve

    def _measured_curve(self) -> CostCurve:
        # A row has no more tokens than the model takes.
        most = _MEASURED_BEHIND + WIDTHS[-1] if self.longest is None else self.longest
        behind = max(1, min(_MEASURED_BEHIND, most // 2))
        cache = self.new_cache(1)
        self.prefill(cache, 0, [0] * behind)

        def step(width: int) -> None:
            cache.reserve(width)
            self.try_step(cache, [[0] * width])

        return CostCurve.measured(
            step, [width for width in WIDTHS if behind + width <= max(behind + 1, most)]
        )

    @cached_property
    def step_seconds(self) -> float:
        """What a step of one token of one row costs here, which is measured once."""
        cache = self.new_cache(1)
        return CostCurve.measured(lambda width: self.look_ahead(cache, 0, [0] * width, 0), [1]).of(1)

    @cached_property
    def longest(self) -> int | None:
        """How many tokens a row may have; None where nothing bounds them."""
        return most_tokens(self.program)

    @cached_property
    def largest_id(self) -> int:
        """The largest token id that the Program takes."""
        return largest_id(self.program)

    @property
    def vocabulary(self) -> int:
        """Of how many tokens it gives scores."""
        return int(self.program.returned[0].shape[-1])

    @cached_property
    def probes(self) -> int:
        """How many prompt tokens the Program has, of which as many may stand behind one another."""
        return prompt_count(self.program)

    @cached_property
    def rounds_activations(self) -> bool:
        """Whether steps must sum in one order to give one result.

        Where activations are rounded to few bits, what two orders differ by in the last place puts some of them on the
        other side of a step, and after a few layers logits differ by as much as rounding costs: what a token is would
        depend on how many were guessed behind it, and on what lies between it and those before it.
        """
        form = next(iter(self._forms.values()), None) or self._form(1, 1)[0]
        return form.rounds_activations

    def prepare(self) -> None:
        """Lower what runs steps of one row, which is done once."""
        self._form(1, 1)

    def new_cache(self, rows: int) -> KvCache:
        return KvCache(self.stepping, self.program.inputs, rows, in_chunks=self.rounds_activations)

    def most_new(self, cache: KvCache) -> int:
        """How many tokens a step may have that is to give what steps of single tokens give."""
        return cache.left_in_chunk() if self.rounds_activations else cache.longest_step

    def prefill(self, cache: KvCache, row: int, tokens: Sequence[int]) -> Tensor:
        """Append a prompt to a row, in pieces; logits ``[vocabulary]`` behind its last token."""
        logits = None
        for start in range(0, len(tokens), cache.longest_step):
            piece = list(tokens[start : start + cache.longest_step])
            last = start + len(piece) == len(tokens)
            cache.reserve(len(piece), row)
            # Logits of every piece but the last are thrown away, and cost a sweep over the vocabulary.
            logits = self._run(cache, [piece], [[len(piece) - 1]] if last else [[]], row)
            cache.advance([len(piece)], row)
        assert logits is not None
        return logits[0, -1]

    def step(self, cache: KvCache, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append as many tokens to every row; logits ``[rows, new, vocabulary]`` behind each."""
        count = len(tokens[0])
        cache.reserve(count)
        logits = self.try_step(cache, tokens)
        cache.advance([count] * cache.rows)
        return logits

    def try_step(
        self, cache: KvCache, tokens: Sequence[Sequence[int]], branching: Branching | None = None
    ) -> Tensor:
        """What :meth:`step` returns, for tokens that are written to the cache and not counted as filled.

        Args:
            branching: where the tokens of a row do not follow each other.
        """
        wanted = [list(range(len(tokens[0])))] * cache.rows
        return self._run(cache, tokens, wanted, None, branching)

    def look_ahead(self, cache: KvCache, row: int, tokens: Sequence[int], ahead: int) -> Tensor:
        """Logits ``[tokens, vocabulary]`` behind each of ``tokens``, which are written to a row and not counted.

        Args:
            cache: of this Program, or of one that has its states among others.
            ahead: tokens that were written so before them.
        """
        return self.results_ahead(cache, row, tokens, ahead)[self._logits][0]

    def results_ahead(self, cache: KvCache, row: int, tokens: Sequence[int], ahead: int) -> dict[str, Tensor]:
        """What :meth:`look_ahead` computes, all outputs but states by their names."""
        cache.reserve(ahead + len(tokens), row)
        return self._results(cache, [tokens], [list(range(len(tokens)))], row, ahead=ahead)

    def _run(
        self,
        cache: KvCache,
        tokens: Sequence[Sequence[int]],
        wanted: list[list[int]],
        row: int | None,
        branching: Branching | None = None,
    ) -> Tensor:
        return self._results(cache, tokens, wanted, row, branching)[self._logits]

    def _results(
        self,
        cache: KvCache,
        tokens: Sequence[Sequence[int]],
        wanted: list[list[int]],
        row: int | None,
        branching: Branching | None = None,
        ahead: int = 0,
    ) -> dict[str, Tensor]:
        asked = len(wanted[0])
        own = torch.arange(len(tokens[0]))
        if self.rounds_activations and len(own) % 2:
            # Of an odd number of rows in products with wide blocks the last is summed by another kernel, as one alone
            # is with any: so the last token is fed twice.
            cache.reserve(ahead + len(own) + 1, row)
            tokens, own = [[*some, some[-1]] for some in tokens], torch.cat([own, own[-1:]])
            branching = branching and branching.filled_up()
        if self.rounds_activations:
            wanted = [places + places[-1:] if len(places) % 2 else places for places in wanted]
        # What runs several rows sums in other orders: where that decides, it runs the last one left of them too.
        rows = cache.most_rows if self.rounds_activations else len(tokens)
        executable, branches = self._form(rows, len(tokens[0]))
        lengths = cache.lengths if row is None else [cache.lengths[row]]
        given = self._own(cache.inputs(row, ahead))
        ids = torch.tensor(tokens)
        given[self.stepping.ids] = ids.to(self._dtypes[self.stepping.ids])
        if self.stepping.padding is not None:
            given[self.stepping.padding] = torch.ones_like(ids, dtype=self._dtypes[self.stepping.padding])
        if branches is not None:
            branching = branching or in_a_row(own, len(tokens))
            own = given[branches.depth] = branching.depths
            given[branches.ancestors] = branching.ancestors
            if branches.probes is not None:
                given[branches.probes] = (
                    torch.zeros_like(ids) if branching.probes is None else branching.probes
                )
        given[self.stepping.positions] = torch.tensor(lengths)[:, None] + ahead + own
        given[self.stepping.wanted] = torch.tensor(wanted, dtype=torch.int64)
        into = self._own(cache.results(row))
        results = executable.run_into(given, into)
        names = [spec.name for spec in executable.outputs]
        found = zip(names, results, strict=True)
        computed = {name: result for name, result in found if name not in self.stepping.results}
        computed[self._logits] = computed[self._logits][:, :asked]
        return computed

    def _own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of this Program, of a cache that may hold states of others."""
        return {name: tensor for name, tensor in tensors.items() if name in self._states}

    def _form(self, rows: int, new: int) -> tuple[Executable, Branches | None]:
        """What runs such a step, and the inputs of it that say how new tokens branch.

        Steps of one row all go through one form, whether they branch or not: another session would hold what it packs
        of the weights a second time.
        """
        one_token = rows > 1 and new == 1
        name = "one row" if rows == 1 else "one token a row" if new == 1 else "several tokens of several rows"
        if name not in self._forms:
            # A model may call its dimensions by any name.
            (batch, tokens), (_, wanted) = (
                self._shapes[driven] for driven in (self.stepping.ids, self.stepping.wanted)
            )
            fixed = (batch,) if rows == 1 else (tokens, wanted) if new == 1 else ()
            program = straight(self.program) if one_token else self.program
            sizes = {str(dim): 1 for dim in fixed if dim in program.ranges}
            self._forms[name] = self.lower(fix_sizes(program, sizes) if sizes else program)
        return self._forms[name], None if one_token else self.stepping.branches

    @property
    def chosen(self) -> dict[str, tuple[str, ...]]:
        """By the kind of step that was taken so far, the form that the target chose for operators with several."""
        return {name: form.chosen for name, form in self._forms.items() if form.chosen}
