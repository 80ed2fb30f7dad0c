"""What tests guess with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tersor.ir.drafting import Draft
from tersor.ir.straight import straight
from tersor.passes.speculate.drafter import Drafter
from tersor.runtime.cost_curve import CostCurve
from tersor.runtime.decoder import Decoder
from tersor.runtime.draft_models import DraftModels
from tersor.runtime.speculation import Policy, Rates
from tersor.runtime.tree import TokenTree

# Wider steps cost hardly more, as on a machine that waits for memory.
CHEAP = CostCurve((1, 2, 3, 5, 9, 33), (1.0, 1.02, 1.04, 1.08, 1.2, 1.4))


def draft_of(tokens: list[int], kind: int = 0, chance: float = 0.6, probed: bool = False) -> Draft:
    """Guesses of one kind that follow each other."""
    return replace(Draft.of_kind(tokens, kind, chance), probed=probed)


class Eager(Policy):
    """Checks all guesses, whatever they promise and take, and feeds all prompt tokens."""

    def longest(self, rows: int) -> int:
        return 6

    def worth(self, rows: int, guesses: int, chance: float, seconds: float) -> bool:
        return True

    def guesses(self, chances: Sequence[Sequence[float]]) -> int:
        return max(map(len, chances))

    def probes(self, guesses: int, expected: float, worth: Sequence[Sequence[float]]) -> int:
        return max(map(len, worth))


def learn(rates: Rates, tree: TokenTree, followed: Sequence[int]) -> None:
    """Let ``rates`` see what followed."""
    rates.watch(tree)
    for token in followed:
        rates.see(token)


def guessing(decoder: Decoder, drafter: Drafter | None) -> dict[str, Any]:
    """Arguments of ``generate`` that let ``drafter`` guess, with the models that it makes of the decoder's own."""
    if drafter is None:
        return {}
    models = drafter.models(straight(decoder.program))
    return {"guess": drafter.begin, "models": DraftModels(models, decoder.lower)}
