"""How the next token is chosen from logits: the most likely one, or a draw, with transformers' own processors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tersor.ir.errors import ExecutionError, InputError

# Seeds of rows lie so far apart that those of two calls with seeds next to each other are not the same.
_ROWS_APART = 1_000_003


@dataclass(frozen=True)
class Sampling:
    """Options by the names and defaults of ``transformers.generate``.

    Attributes:
        temperature: divides the logits of a draw; None or 0 takes the most likely token instead.
        top_k, top_p: what a draw is from, 0 and 1 for all tokens; they say nothing of the most likely one.
        repetition_penalty: divides positive logits of tokens that are there already, and multiplies negative ones.
        seed: of the draws; another every time where it is None.
    """

    temperature: float | None = None
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises InputError where a value makes no sense."""
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise InputError(
                f"temperature={self.temperature!r} is no temperature: give a number from 0 up, or None"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(
                f"top_k={self.top_k!r} is no number of tokens: give an integer from 0 (all of them) up"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p!r} is outside 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty={self.repetition_penalty!r} is not above 0")

    @property
    def greedy(self) -> bool:
        return not self.temperature


class Sampler:
    """Chooses tokens of one row by :class:`Sampling`; rows draw by themselves, whatever the others do."""

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed + row * _ROWS_APART)
        self._processors, self._warpers = _processors(sampling)

    def choose(self, tokens: list[int], logits: Tensor) -> int:
        """The token that follows ``tokens``.

        Args:
            logits: ``[vocabulary]``.

        Raises:
            ExecutionError: they are not numbers.
        """
        if self.sampling.greedy:
            scores = self._processed(self._processors, tokens, logits) if self._processors else logits
            token = int(scores.argmax())
            if not torch.isfinite(scores[token]):
                raise _no_numbers(len(tokens))
            return token
        return int(torch.multinomial(self.distribution(tokens, logits), 1, generator=self._generator))

    def distribution(self, tokens: list[int], logits: Tensor) -> Tensor:
        """What a draw is from: probabilities ``[vocabulary]`` after every processor.

        Raises:
            ExecutionError: the logits are not numbers.
        """
        scores = self._processed([*self._processors, *self._warpers], tokens, logits)
        probabilities = torch.softmax(scores.float(), dim=-1)
        if not torch.isfinite(probabilities).all():
            raise _no_numbers(len(tokens))
        return probabilities

    def _processed(self, processors: list[Any], tokens: list[int], logits: Tensor) -> Tensor:
        ids, scores = torch.tensor([tokens]), logits[None].float()
        for processor in processors:
            scores = processor(ids, scores)
        return scores[0]


def _processors(sampling: Sampling) -> tuple[list[Any], list[Any]]:
    """What applies always, and what to draws only, in the order of ``transformers.generate``."""
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    always, draws = [], []
    if sampling.repetition_penalty != 1.0:
        always.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if not sampling.greedy:
        if sampling.temperature != 1.0:
            draws.append(TemperatureLogitsWarper(float(sampling.temperature or 1.0)))
        if sampling.top_k > 0:
            draws.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            draws.append(TopPLogitsWarper(sampling.top_p))
    return always, draws


def _no_numbers(place: int) -> ExecutionError:
    return ExecutionError(
        f"the model's logits behind token {place} are not numbers (NaN or infinite): its weights, or the precision "
        "they are run in, do not bear this input"
    )
