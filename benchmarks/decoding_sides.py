"""What generates in the decoding benchmark: Tersor with every drafter, and its peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tersor.passes.registry import find_methods
from tersor.passes.speculate.drafter import Drafter
from tersor.runtime.decoder import Decoder
from tersor.runtime.generation import Stopping, generate
from tersor.runtime.sampling import Sampling
from tersor.runtime.speculation import Statistics

DRAFTERS = tuple(find_methods(Drafter))  # type: ignore[type-abstract]


class Side(Protocol):
    """Something that generates; ``name`` is its column."""

    name: str

    def run(self, prompt: list[int], new: int) -> list[int]:
        """So many new tokens behind a prompt, past the end of a text too."""


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
        return found[0, len(prompt) :].tolist()  # type: ignore[no-any-return]

    def logits(self, tokens: Sequence[int], rows: int = 1) -> torch.Tensor:
        """Behind the last of ``tokens``, computed beside as many rows as there are."""
        ids = torch.tensor([list(tokens)] * rows)
        return self.model(input_ids=ids, logits_to_keep=1).logits[0, -1]  # type: ignore[no-any-return]


@dataclass
class Ours:
    """Tersor; with the drafter of that name, or without one.

    Attributes:
        counts: what came of guesses in the last run.
    """

    name: str
    decoder: Decoder
    drafter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    counts: Statistics = field(default_factory=Statistics)

    def run(self, prompt: list[int], new: int) -> list[int]:
        self.counts = Statistics()
        guess: Callable[[], Any] | None = None
        if self.drafter is not None:
            # A new one for each prompt: what it remembers of other texts is no merit of this one.
            guess = find_methods(Drafter)[self.drafter]().begin  # type: ignore[type-abstract]
        return generate(self.decoder, [prompt], Stopping(new), self.sampling, None, guess, self.counts)[0]

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Behind the last of ``tokens``, computed at once."""
        return self.decoder.prefill(self.decoder.new_cache(1), 0, tokens)
