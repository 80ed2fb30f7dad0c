"""How the next token is chosen from logits: the most likely one, or a draw, with transformers' own processors.

A draw is the largest of scores plus Gumbel noise, and the noise is a function of seed, row, place and token alone.  So
a row draws the same beside others as alone, with guesses as without; and a drafter that draws from a model of its own
with the same noise is right about as often as two models can be made to agree (Daliri et al. 2025, "Coupling without
Communication and Drafter-Invariant Speculative Decoding").
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.ir.errors import ExecutionError, InputError
from tersor.ir.largest import among_largest

from .processors import ABOVE_TOP_K, Processor, Text, check_processors, processors_of

_BITS = 2**64
# Characters of an option's value in an error.
_SHOWN = 60
# Logits over less are beyond what float32 holds.
_COLDEST = 1e-6
# Of splitmix64 (Steele et al. 2014).
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Sampling:
    """Options by the names and defaults of ``transformers.generate``.

    Attributes:
        temperature: divides the logits of a draw; None or 0 takes the most likely token instead.
        top_k, top_p: what a draw is from, 0 and 1 for all tokens; they say nothing of the most likely one.
        repetition_penalty: divides positive logits of tokens that are there already, and multiplies negative ones.
        seed: of the draws; another every time where it is None.
        others: further options that change scores, see ``processors.OPTIONS``.
    """

    temperature: float | None = None
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InputError where a value makes no sense."""
        if self.temperature is not None and not (
            _is_number(self.temperature)
            and (self.temperature == 0 or _COLDEST <= self.temperature < float("inf"))
        ):
            raise InputError(
                f"temperature={self.temperature!r} is no temperature: give a number from {_COLDEST:g} up, or 0 or None "
                "for the most likely token"
            )
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise InputError(
                f"top_k={self.top_k!r} is no number of tokens: give an integer from 0 (all of them) up"
            )
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p={self.top_p!r} is outside 0 to 1")
        if not (_is_number(self.repetition_penalty) and 0 < self.repetition_penalty < float("inf")):
            raise InputError(f"repetition_penalty={self.repetition_penalty!r} is no number above 0")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, Integral)):
            raise InputError(
                f"seed={self.seed!r} is no integer: give one, or None for another draw every time"
            )

        processors_of(self.options, Text(ends=(0,)), draws=True)

    @property
    def greedy(self) -> bool:
        return not self.temperature

    @property
    def options(self) -> dict[str, Any]:
        """All that change scores, by the names of ``transformers.generate``."""
        return {
            **self.others,
            "temperature": self.temperature or 1.0,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
        }


class Sampler:
    """Chooses tokens of one row by :class:`Sampling`; rows draw by themselves, whatever the others do."""

    def __init__(self, sampling: Sampling, row: int = 0, text: Text | None = None) -> None:
        self.sampling, self._text = sampling, text or Text()
        seed = secrets.randbits(64) if sampling.seed is None else int(sampling.seed)
        self._key = _hashed(_hashed(seed % _BITS) ^ row)
        self._processors, self._warpers = processors_of(sampling.options, self._text, not sampling.greedy)
        # Others leave the same of all tokens and of the largest alone, which are found in a fraction of the time.
        self._largest = 0 if ABOVE_TOP_K & sampling.others.keys() else sampling.top_k

    def check(self, vocabulary: int) -> None:
        """Raise InputError where an option does not fit a vocabulary of so many tokens."""
        if self.sampling.others:
            check_processors(self.sampling.others, self._text, vocabulary)

    def choose(self, tokens: list[int], logits: Tensor) -> int:
        """The token that follows ``tokens``; the same whenever it is asked.

        Args:
            logits: ``[vocabulary]``.

        Raises:
            ExecutionError: they are not numbers.
            InputError: they are, and options leave none of them.
        """
        if self.sampling.greedy:
            scores = self._processed(self._processors, tokens, logits)
            # NumPy's takes a tenth of the time of torch's; both give a NaN, where there is one.
            token = int(scores.float().numpy().argmax())
            if not torch.isfinite(scores[token]):
                raise self._nothing_follows(len(tokens), logits)
            return token
        scores = self._processed(self._processors, tokens, logits)
        among = among_largest(scores.float().numpy(), self._largest)
        ids = None if among is None else torch.from_numpy(among)
        scores = self._processed(self._warpers, tokens, scores if ids is None else scores[ids])
        possible = (scores != -torch.inf).nonzero()[:, 0]
        if not len(possible) or not torch.isfinite(scores[possible]).all():
            raise self._nothing_follows(len(tokens), logits)
        scores, ids = scores[possible], possible if ids is None else ids[possible]
        return int(ids[(scores.double() + self._noise(len(tokens), ids)).argmax()])

    def noisy(self, place: int, tokens: Sequence[int], scores: Sequence[float]) -> list[float]:
        """Scores by which the token at ``place`` would be chosen among ``tokens`` if ``scores`` were their logits."""
        if self.sampling.greedy:
            return list(scores)
        noise = self._noise(place, torch.tensor(tokens, dtype=torch.int64)).tolist()
        temperature = self.sampling.temperature or 1.0
        return [score / temperature + extra for score, extra in zip(scores, noise, strict=True)]

    def _nothing_follows(self, place: int, logits: Tensor) -> Exception:
        """The error of a token behind ``place`` others for which no score is a number."""
        if not torch.isfinite(logits.max()):
            return ExecutionError(
                f"the model's logits behind token {place} are not numbers (NaN or infinite): its weights, or the "
                "precision they are run in, do not bear this input"
            )
        told = ", ".join(f"{name}={_short(value)}" for name, value in self.sampling.options.items())
        return InputError(
            f"no token may follow token {place}: the model has scores for all, and what changes them leaves no number "
            f"({told}): ask for less"
        )

    def _noise(self, place: int, ids: Tensor) -> Tensor:
        """Gumbel noise of every token, float64."""
        bits = _mixed(ids.numpy().astype(np.uint64) ^ np.uint64(_hashed(self._key ^ place)))
        uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return torch.from_numpy(-np.log(-np.log(uniform)))

    def _processed(self, processors: Sequence[Processor], tokens: list[int], logits: Tensor) -> Tensor:
        if not processors:
            return logits
        ids, scores = torch.tensor([tokens]), logits[None].float()
        for processor in processors:
            scores = processor(ids, scores)
        return scores[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _hashed(number: int) -> int:
    return int(_mixed(np.array([number], dtype=np.uint64))[0])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Of every uint64 another, as good as drawn."""
    z = numbers + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return z ^ (z >> np.uint64(31))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
