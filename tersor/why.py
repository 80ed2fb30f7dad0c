"""Why an artifact's tokens part from its model's: a tie that rounding decides, or a mistake."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .ir.errors import InputError
from .ir.program import Program
from .ir.stepping import Stepping
from .model import OptimizedModel
from .runtime.divergence import Divergence, first_divergence
from .text import token_ids
from .verification import capture_like


@dataclass(frozen=True)
class Comparison:
    """Greedy tokens behind a prompt, and where the model would have gone on otherwise.

    Attributes:
        tokens: how many were compared.
        divergence: the first at which the model prefers another; None where there is none.
        texts: of the two tokens there, the model's first; empty where the artifact has no tokenizer, or one ends.
        stored: the kind that the artifact's weights are rounded to; empty where they are the model's.
    """

    tokens: int
    divergence: Divergence | None
    texts: tuple[str, ...] = ()
    stored: str = ""

    @property
    def ok(self) -> bool:
        """Whether the tokens are the model's own, but for a tie."""
        return self.divergence is None or self.divergence.is_tie

    def to_json(self) -> dict[str, Any]:
        parted = None
        if self.divergence is not None:
            parted = {**asdict(self.divergence), "tie": self.divergence.is_tie, "texts": list(self.texts)}
            if None in self.divergence.tokens:
                parted["margin"] = None
        return {
            "ok": self.ok,
            "tokens": self.tokens,
            "divergence": parted,
            "weights": self.stored or "as they are",
        }

    def __str__(self) -> str:
        if self.divergence is None:
            return f"all {self.tokens} tokens are the model's own"
        told = f"; the model says {self.texts[0]!r}, the artifact {self.texts[1]!r}" if self.texts else ""
        rounded = (
            f". The artifact's weights are {self.stored}, which moves logits by more than rounding: its report says "
            "what that costs; with weights='fp32' the tokens are to be the model's"
            if self.stored and not self.ok
            else ""
        )
        return f"{self.divergence}{told}{rounded}"


def compare_with_model(
    model: OptimizedModel, against: nn.Module | str | Path | Program, prompt: str | list[int], most: int
) -> Comparison:
    """Generate at most ``most`` tokens, and look where the model itself would have chosen another.

    One run of the model over all of them tells: up to the first token that differs, both have read the same.

    Raises:
        InputError: the model keeps no cache, the prompt is empty, or ``against`` is no model that takes it.
    """
    generator = model.generator
    tokens = token_ids(generator.tokenizer, prompt) if isinstance(prompt, str) else prompt
    new = generator.likeliest(tokens, most)
    row = [*tokens, *new]
    stepping = generator.decoder.stepping
    source = capture_like(against, model.program)
    # What follows the last one is asked for only where the model might have gone on: it may be past its positions.
    read = row[:-1] if len(new) == most else row
    behind = _logits(source, stepping, read)[len(tokens) - 1 :]

    def theirs(before: Sequence[int]) -> Tensor:
        return behind[len(before) - len(tokens)]

    def alone(before: Sequence[int]) -> Tensor:
        return _logits(source, stepping, list(before))[-1]

    def ours(before: Sequence[int]) -> Tensor:
        return generator.decoder.prefill(generator.decoder.new_cache(1), 0, before)

    expected = _until(behind.argmax(-1).tolist(), most, generator.ends)
    parted = first_divergence(tokens, expected, new, theirs, alone, ours)
    texts: tuple[str, ...] = ()
    if parted is not None and None not in parted.tokens and isinstance(prompt, str):
        texts = tuple(generator.tokenizer.decode([token]) for token in parted.tokens)
    storage = model.report.storage
    stored = storage.kept.kind if storage is not None and storage.rounds else ""
    return Comparison(len(new), parted, texts, stored)


def _until(tokens: list[int], most: int, ends: Collection[int]) -> list[int]:
    """At most so many, and none behind one that ends a text."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: min(most, last + 1)]


def _logits(source: Program, stepping: Stepping, row: list[int]) -> Tensor:
    """Of the model itself, ``[tokens, vocabulary]``."""
    ids = torch.tensor([row])
    given = {stepping.ids: ids}
    if stepping.padding is not None:
        given[stepping.padding] = torch.ones_like(ids)
    logits = source.run(source.bind(**given))[0]
    if logits.shape[:2] != ids.shape:
        raise InputError(
            f"the model gives {list(logits.shape)}, and not scores behind each of {len(row)} tokens"
        )
    return logits[0]
