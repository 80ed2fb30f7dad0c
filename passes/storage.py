"""What storing weights in fewer bits was measured to cost, as the report states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .deviation import Deviation


@dataclass(frozen=True)
class Trial:
    """Weights stored in one way, against the Program's own.

    Attributes:
        kind: how they are stored; as in ``int4, 9 matrices int8`` where one kind is mixed with another.
        bytes: what all weights take.
        loss: what it costs, relatively: 0.01 is one percent; below 0 where chance was kind.  Of a language model how
            much larger perplexity is; where there is no text, the same as the divergence of its predictions foretells;
            else the mean cosine distance.
        error: standard error of ``loss``; 0 where it is no mean over a text.
    """

    kind: str
    bytes: int
    loss: float
    error: float = 0.0


@dataclass(frozen=True)
class Storage:
    """How weights are stored, and what that was measured to cost.

    Attributes:
        measure: what ``loss`` is: ``perplexity``, ``predictions`` or ``cosine distance``.
        positions: predicted tokens, or compared outputs.
        most_loss: what the kind may cost.
        bytes: what all weights take as the Program holds them.
        trials: all that were tried; the last is the one that is kept.
        deviation: of the outputs from the Program's on the report's samples.
        smoothed: of how many matrices the input was smoothed before; see ``passes.smoothing``.
    """

    measure: str
    positions: int
    most_loss: float
    bytes: int
    trials: tuple[Trial, ...]
    deviation: Deviation
    smoothed: int = 0

    @property
    def kept(self) -> Trial:
        return self.trials[-1]

    @property
    def rounds(self) -> bool:
        """Whether weights are other numbers than the model's; not so where every kind was given up."""
        return self.kept.kind != "fp32"

    def to_json(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "positions": self.positions,
            "most_loss": self.most_loss,
            "bytes": self.bytes,
            "trials": [asdict(trial) for trial in self.trials],
            "deviation": self.deviation.to_json(),
            "smoothed": self.smoothed,
        }

    def __str__(self) -> str:
        told = [self._trial(trial) for trial in self.trials]
        before = f"; tried before: {'; '.join(told[:-1])}" if len(told) > 1 else ""
        # Two standard errors to either side hold the truth nineteen times of twenty.
        even = f"; inputs of {self.smoothed} matrices smoothed" if self.smoothed else ""
        few = ", too few to tell: calibrate on more text" if 2 * self.kept.error > self.most_loss else ""
        return f"weights {told[-1]} over {self.positions} positions{few}, at most {self.most_loss:.0%}{even}{before}"

    def _trial(self, trial: Trial) -> str:
        spread = f" ± {trial.error:.2%}" if trial.error else ""
        share = f"{trial.bytes / 1e6:.3g} of {self.bytes / 1e6:.3g} MB"
        return f"{trial.kind}: {share}, {self.measure} {trial.loss:+.2%}{spread}"


def trial_from_json(data: Mapping[str, Any]) -> Trial:
    """The inverse of what ``Storage.to_json`` makes of a trial."""
    return Trial(str(data["kind"]), int(data["bytes"]), float(data["loss"]), float(data["error"]))
