"""Parallel prompt decoding: trained prompt tokens behind what is checked see further ahead (Chen et al. 2024).

A prompt token is an embedding that stands where a token will be that nobody knows yet; what the model says behind it is
a guess of the token after that.  The model itself is as it was, and all that is trained are a few embeddings
(``tersor train-prompts``).  Which guesses are checked, and behind which of them prompt tokens are fed for the step to
come, follows from how often guesses were right and from what a step costs; the paper's tree is chosen beforehand.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tersor.ir.drafting import GREEDILY, NO_ROWS, Draft, Drafting, Outlook, Rows
from tersor.ir.errors import InputError
from tersor.ir.program import Program
from tersor.ir.prompt_tokens import embeddings, with_prompt_tokens

from .best_first import Guess
from .drafter import Drafter
from .likeliest import likeliest
from .ranked_tree import ranked_tree

PROMPTS = "prompts"
# How many prompt tokens there are where none were trained.
_UNTRAINED = 3
# Tokens that are looked at for each that may be guessed: of those a draw may choose another than the likeliest.
_LOOKED_AT = 4
# Guesses of one rank of which the model is about as sure are of one kind.
_SURE = (0.1, 0.3, 0.6)


@dataclass(frozen=True)
class PromptTokens(Drafter):
    """Guess what the model says behind trained prompt tokens, which are checked along with the guesses before."""

    name: ClassVar[str] = "ppd"
    reported: ClassVar[str] = "up to 2.49x, MobileLlama to Vicuna-13B"

    prompts: str = field(
        default="",
        metadata={
            "help": "file that `tersor train-prompts` wrote; by default untrained, which guesses badly"
        },
    )
    candidates: int = field(default=3, metadata={"help": "tokens that are guessed at each distance"})

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates={self.candidates} must be 1 or more")

    def begin(self, rows: Rows = NO_ROWS) -> Drafting:
        return _Prompted(self.candidates)

    def prepared(self, program: Program) -> Program:
        table = embeddings(program)
        prompts = read_prompts(self.prompts, table.shape[1]) if self.prompts else untrained(table, _UNTRAINED)
        return with_prompt_tokens(program, prompts)


def untrained(table: Tensor, count: int) -> Tensor:
    """What prompt tokens begin as, ``[count, width]``: the mean of the embeddings of tokens."""
    return table.float().mean(0, keepdim=True).repeat(count, 1)


def read_prompts(file: str, width: int) -> Tensor:
    """The embeddings of prompt tokens in a file, float32 ``[count, width]``.

    Raises:
        InputError: there is none, or it holds something else.
    """
    if not Path(file).is_file():
        raise InputError(
            f"there is no file {file!r} of prompt tokens: give one that `tersor train-prompts` wrote"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            prompts: Tensor = opened.get_tensor(PROMPTS)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{file} holds no tensor {PROMPTS!r}: {' '.join(str(error).split())}") from error
    if prompts.dim() != 2 or not len(prompts) or not prompts.is_floating_point():
        raise InputError(
            f"{file} holds {PROMPTS!r} as {list(prompts.shape)} {prompts.dtype}, not floats [count, width]"
        )
    if prompts.shape[1] != width:
        raise InputError(
            f"{file} holds prompt tokens of {prompts.shape[1]} channels, and the model's embeddings have {width}: "
            "prompt tokens are trained for one model"
        )
    if not torch.isfinite(prompts).all():
        raise InputError(f"{file} holds prompt tokens that are not numbers (NaN or infinite)")
    return prompts.float()


class _Prompted(Drafting):
    """One text, and what was likely at each distance behind its last token."""

    def __init__(self, candidates: int) -> None:
        self._candidates = candidates
        self._ahead: list[_Likely] = []

    def extend(self, tokens: Sequence[int]) -> None:
        # What was said behind prompt tokens is told after the tokens of a step, and counts from the last of them.
        self._ahead = []

    def probed(self, logits: Tensor) -> None:
        self._ahead = [_Likely.of(row, _LOOKED_AT * self._candidates) for row in logits.float()]

    def draft(self, most: int, outlook: Outlook = GREEDILY) -> list[Draft]:
        ranked = [
            likely.ranked(place, self._candidates, outlook) for place, likely in enumerate(self._ahead[:most])
        ]
        # What is said of a place depends on no other.
        return ranked_tree(lambda ahead, _: ranked[ahead], self._candidates, len(ranked), probed=True)


@dataclass(frozen=True)
class _Likely:
    """Tokens that are likely at one place, the likeliest first, their logits, and how sure the model is of each."""

    tokens: list[int]
    scores: list[float]
    sure: list[float]

    @classmethod
    def of(cls, logits: Tensor, count: int) -> _Likely:
        tokens = likeliest(logits.numpy(), count)
        scores = logits[tokens]
        return cls(tokens, scores.tolist(), torch.exp(scores - torch.logsumexp(logits, 0)).tolist())

    def ranked(self, ahead: int, count: int, outlook: Outlook) -> list[Guess]:
        """Guesses in the order in which they would be chosen."""
        scores = outlook.noisy(ahead, self.tokens, self.scores)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[:count]
        return [
            Guess(
                self.tokens[place],
                rank * (1 + len(_SURE)) + bisect(_SURE, self.sure[place]),
                self.sure[place],
            )
            for rank, place in enumerate(order)
        ]
