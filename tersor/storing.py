"""Settles how weights are stored: lowers the Program so, measures what that costs, and keeps what costs little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .calibration import Batch
from .codegen.onnx.weights import find_kind, kinds, stored_weights
from .codegen.onnx.weights.damage import damage
from .codegen.target import Executable
from .ir.errors import InputError, PromiseError
from .ir.program import SMOOTHED, Program
from .losses import Losses
from .lowering import lower
from .passes.deviation import Reference
from .passes.pipeline import OnViolation
from .passes.smoothing import smoothed
from .passes.storage import Storage, Trial

# What `auto` may lose, whatever its kind may.
AUTO_LOSS = 0.01
# Batches of text that show which channels are large.
_SMOOTHED_ON = 8
# To what share of the matrices it is found how many of them must be.
_FINENESS = 16


@dataclass(frozen=True)
class StoredProgram:
    """A lowered Program, the options it was lowered with, what its way of storing weights costs, and notes on that."""

    program: Program
    executable: Executable
    options: dict[str, Any]
    storage: Storage
    notes: tuple[str, ...] = ()


def lower_stored(
    program: Program,
    target: str,
    options: Mapping[str, Any],
    samples: Sequence[Batch],
    calibrated: bool,
    on_violation: OnViolation,
    tell: Callable[[str], None],
) -> StoredProgram:
    """``program`` lowered with weights stored in the kind that ``options`` ask for, which is not fp32.

    Where that costs more than the kind may, some of the weights are stored in another one, those first that cost most
    for their size.

    Args:
        samples: what is measured on, beside text; the user's own where ``calibrated``.

    Raises:
        PromiseError: it costs more all the same, and ``on_violation`` is ``"raise"``; else they stay as they are.
        InputError: the kind has no form for this model's weights.
        LoweringError: the target has no form for an operator.
    """
    asked = str(options["weights"])
    tell("measuring the Program")
    trials = _Trials(program, target, dict(options), Losses(program, samples, calibrated), samples[0], tell)
    if asked == "auto":
        wanted, most, other = _by_size(program, options), AUTO_LOSS, None
    else:
        kind = find_kind(asked)
        assert kind is not None
        wanted, most, other = [asked], kind.most_loss, kind.mixed_with
    for name in wanted:
        if trials.attempt(name, {}, most):
            break
        # Mixing takes several trials more: what `auto` tries next costs less time, and is smaller than most mixtures.
        if other is not None and trials.mix(name, other, most):
            break
    else:
        if asked != "auto" and on_violation == "raise":
            raise PromiseError(_refusal(asked, trials, most, calibrated))
        trials.attempt("fp32", {}, most)
    return trials.stored(most)


@dataclass
class _Trials:
    """Ways of storing the weights of one Program, each lowered and measured."""

    program: Program
    target: str
    options: dict[str, Any]
    losses: Losses
    sample: Batch
    tell: Callable[[str], None]
    done: list[Trial] = field(default_factory=list)
    last: Any = None

    @cached_property
    def smoothed(self) -> Program:
        """The Program with inputs of products evened out; as it is where that changes more than rounding."""
        self.tell("smoothing inputs")
        found = smoothed(self.program, self.losses.text[:_SMOOTHED_ON] or [self.sample])
        return found if Reference(self.program, [self.sample]).compare(found).is_rounding else self.program

    def stored_in(self, kind: str) -> Program:
        """The Program whose weights are stored in that kind."""
        found = find_kind(kind)
        return self.smoothed if found is not None and found.smooths else self.program

    def attempt(self, kind: str, others: dict[str, str], most: float) -> bool:
        """Whether it costs no more than ``most``."""
        count = sum(name != kind for name in others.values())
        label = f"{kind}, {count} matrices {next(iter(others.values()))}" if count else kind
        self.tell(f"measuring weights stored as {label}")
        options = self.options | {"weights": kind} | ({"weight_kinds": others} if others else {})
        self.last = None  # Two sessions of a large model may be one too many.
        program = self.stored_in(kind)
        executable = lower(program, self.target, options)
        loss, deviation = self.losses.of(executable)
        self.last = program, executable, options, deviation
        self.done.append(Trial(label, _bytes(program, kind, others), loss.share, loss.error))
        # What lowers perplexity by as much computes something else too.
        return abs(loss.share) <= most

    def mix(self, kind: str, other: str, most: float) -> bool:
        """Whether it does with some of the weights stored as ``other``: those first that cost most for their size."""
        program = self.stored_in(kind)
        costs = damage(program, stored_weights(program, kind), self.sample)
        order = sorted(costs, key=lambda name: -costs[name] / program.weights[name].numel())
        # One large matrix (a vocabulary's) may be too much by itself: then it goes first, and some of the others do.
        few, many = 0, len(order) - 1
        if many < 1:
            return False
        if not self.attempt(kind, dict.fromkeys(order[:many], other), most):
            order, few = [order[-1], *order[:-1]], 1
            if many < 2 or not self.attempt(kind, dict.fromkeys(order[:many], other), most):
                return False
        while many - few > max(1, len(order) // _FINENESS):
            middle = (few + many) // 2
            if self.attempt(kind, dict.fromkeys(order[:middle], other), most):
                many = middle
            else:
                few = middle
        # The last that was measured is the one that is kept.
        label = f"{kind}, {many} matrices {other}"
        return self.done[-1].kind == label or self.attempt(kind, dict.fromkeys(order[:many], other), most)

    def stored(self, most: float) -> StoredProgram:
        program, executable, options, deviation = self.last
        storage = Storage(
            self.losses.measure,
            self.losses.positions,
            most,
            _bytes(self.program, "fp32", {}),
            tuple(self.done),
            deviation,
            len(program.notes.get(SMOOTHED, ())),
        )
        return StoredProgram(program, executable, options, storage, self.losses.notes)


def _by_size(program: Program, options: Mapping[str, Any]) -> list[str]:
    """The kinds that have a form for this model's weights, those first that take the fewest bytes."""
    sizes = {}
    for name, kind in kinds().items():
        if options.get("ops") == "portable" and not kind.portable:
            continue
        try:
            sizes[name] = _bytes(program, name, {})
        except InputError:
            continue
    return sorted(sizes, key=lambda name: (sizes[name], name))


def _bytes(program: Program, kind: str, others: Mapping[str, str]) -> int:
    """What all weights take where they are stored so."""
    stored = {} if kind == "fp32" else stored_weights(program, kind, others)
    kept = {w.data_ptr(): w.nbytes for name, w in program.weights.items() if name not in stored}
    return sum(kept.values()) + sum(weight.nbytes for weight in stored.values())


def _refusal(kind: str, trials: _Trials, most: float, calibrated: bool) -> str:
    best = min(trials.done, key=lambda trial: abs(trial.loss))
    error = f" (standard error {best.error:.1%})" if best.error else ""
    # What an example holds is often random, and predictions of that are of nothing that is ever asked.
    advice = "" if calibrated else "give inputs that the model is meant for as calibration, "
    return (
        f"weights={kind!r} costs {best.loss:.1%} of {trials.losses.measure}{error}, measured on "
        f"{trials.losses.positions} positions, and may cost {most:.0%}: {advice}store them in more bits, or pass "
        "on_violation='revert' to leave them as they are"
    )
