"""What tests guess with."""

from __future__ import annotations

from dataclasses import dataclass

from tersor.runtime.cost_curve import CostCurve

# Wider steps cost hardly more, as on a machine that waits for memory.
CHEAP = CostCurve((1, 2, 3, 5, 9, 33), (1.0, 1.02, 1.04, 1.08, 1.2, 1.4))


@dataclass
class Chain:
    """Guesses of one kind that follow each other."""

    tokens: list[int]
    kind: int = 0
    chance: float = 0.6

    @property
    def kinds(self) -> list[int]:
        return [self.kind] * len(self.tokens)

    @property
    def chances(self) -> list[float]:
        return [self.chance] * len(self.tokens)
