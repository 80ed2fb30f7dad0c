"""Run passes one after another: legality, rewrite, verifier, promise check, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from tersor.ir.errors import InputError, PromiseError, RefusedError, VerifierError
from tersor.ir.other_sizes import verify_other_sizes
from tersor.ir.program import Program
from tersor.ir.verifier import verify

from .blame import blame
from .cleanup import Cleanup
from .contract import Pass, Promise, Refusal, Site
from .deviation import Deviation, Reference
from .report import Report, Step, totals_at
from .spec import Spec, parse_spec

OnViolation = Literal["raise", "revert"]
Measure = Callable[[Program, Program], float]


def run(
    program: Program,
    specs: Sequence[str | Pass],
    *,
    calibration: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
    max_deviation: float | None = None,
    on_violation: OnViolation = "raise",
    measure: Measure | None = None,
    require_speedup: bool = False,
    progress: Callable[[str], None] | None = None,
) -> tuple[Program, Report]:
    """Rewrite ``program`` by ``specs`` in order, with clean-up before the first and after every one.

    Args:
        specs: spec strings or passes.
        calibration: inputs by name, one mapping a sample; the Program's example inputs where none is given.
        max_deviation: largest overall deviation from ``program`` that approximate passes may reach together.
        on_violation: what a pass that is refused, breaks its promise or passes the budget leads to: an error, or
            going on without it.
        measure: latency of its second Program over that of its first, lowered and paired.
        require_speedup: revert a pass whose result ``measure`` finds no faster.
        progress: told what is being done.

    Returns:
        the rewritten Program, whose inputs are unchanged, and the report.

    Raises:
        SpecError: a spec is wrong.
        InputError: calibration inputs do not fit, the model's own outputs on them are not finite, or a pass or method
            that is defined outside Tersor fails.
        RefusedError, PromiseError: as ``on_violation`` asks.
        VerifierError: a pass of Tersor's produced a malformed Program, which is a defect of the pass.
    """
    passes = [parse_spec(spec) for spec in specs]
    _check_given(program)
    if on_violation not in ("raise", "revert"):
        raise InputError(f"on_violation={on_violation!r} is neither 'raise' nor 'revert'")
    if require_speedup and measure is None:
        raise InputError(
            "require_speedup needs measure=, a function that times two Programs against each other"
        )
    pipeline = _Pipeline(
        original=Reference(program, _samples(program, calibration)),
        max_deviation=max_deviation,
        on_violation=on_violation,
        measure=measure,
        require_speedup=require_speedup,
        progress=progress or (lambda _: None),
    )
    return pipeline.run(program, passes)


@dataclass
class _Pipeline:
    original: Reference
    max_deviation: float | None
    on_violation: OnViolation
    measure: Measure | None
    require_speedup: bool
    progress: Callable[[str], None]
    sizes: dict[str, int] = field(default_factory=dict)

    def run(self, program: Program, passes: Sequence[Pass]) -> tuple[Program, Report]:
        if not self.original.finite:
            raise InputError(
                "the model's own outputs on the calibration inputs are not finite; check weights and inputs"
            )
        self.sizes = program.sizes(self.original.samples[0])
        steps: list[Step] = []
        reference = self.original
        for instance in (Cleanup(), *passes):
            self.progress(str(Spec.of(instance)))
            started = time.perf_counter()
            program, step, reference = self._apply(instance, program, reference)
            steps.append(replace(step, seconds=time.perf_counter() - started))
        final = self.original.compare_outputs(reference.outputs)
        notes = (
            *map(str, program.notes.get("capture", ())),
            *(f"{name}: {why}" for name, why in program.least.items()),
            *self.original.notes,
        )
        return program, Report(tuple(steps), self.sizes, len(self.original.samples), final, notes)

    def _apply(
        self, instance: Pass, program: Program, reference: Reference
    ) -> tuple[Program, Step, Reference]:
        """The Program after the pass, what is to be reported, and what the next pass is compared with."""
        before = totals_at(program, self.sizes)
        step = Step(
            str(Spec.of(instance)), instance.family, instance.promised, "kept", before=before, after=before
        )
        try:
            with blame(instance):
                sites = _sites(instance, program)
                step = replace(step, sites=tuple(sites))
                if not sites:
                    return program, replace(step, verdict="unchanged", reason="nothing to do"), reference
                after = _rewritten(instance, program, sites)
                self._check_sizes(step.spec, after)
                result = Reference(after, self.original.samples)
        except RefusedError as error:
            if self.on_violation == "raise":
                raise
            return program, replace(step, verdict="refused", reason=str(error)), reference
        exact = instance.promised is not Promise.APPROXIMATE
        deviation = (reference if exact else self.original).compare_outputs(result.outputs)
        step = replace(step, deviation=deviation)
        broken = self._broken(instance.promised, deviation)
        if broken:
            if self.on_violation == "raise":
                raise PromiseError(f"{step.spec} {broken}")
            return program, replace(step, verdict="reverted", reason=broken), reference
        if self.measure is not None and instance.must_pay:
            ratio = self.measure(program, after)
            step = replace(step, latency_ratio=ratio)
            if self.require_speedup and not ratio < 1.0:
                slower = f"it does not pay: the result takes {ratio:.3f} times as long"
                return program, replace(step, verdict="reverted", reason=slower), reference
        return after, replace(step, after=totals_at(after, self.sizes)), result

    def _check_sizes(self, spec: str, program: Program) -> None:
        """A pass may narrow the sizes that a Program takes, but not past the inputs it is to be checked on."""
        for sample in self.original.samples:
            for name, size in program.sizes(sample).items():
                low, high = program.ranges.get(name, (0, None))
                if size < low or (high is not None and size > high):
                    raise RefusedError(
                        f"{spec} needs {name} of {low} to {high or 'any'}, and a calibration input has {size}: pass "
                        "calibration= (or an example) of such a size, or change the pass's options"
                    )

    def _broken(self, promise: Promise, deviation: Deviation) -> str:
        """How the measurement contradicts the promise or the budget; empty when it does not."""
        if not deviation.outputs:
            return f"left no output to compare: {', '.join(deviation.not_compared)} changed shape"
        if not deviation.finite:
            names = ", ".join(o.name for o in deviation.outputs if not o.finite)
            return f"makes {names} not finite"
        if promise is Promise.APPROXIMATE:
            if self.max_deviation is not None and not deviation.overall <= self.max_deviation:
                return f"deviates by {deviation.overall:.4g}, past the budget of {self.max_deviation:g}"
            return ""
        agreement = deviation.top1_agreement
        if promise is Promise.GREEDY_EXACT and agreement is not None:
            return (
                "" if agreement == 1.0 else f"promised the same top tokens and keeps {agreement:.2%} of them"
            )
        if deviation.is_rounding:
            return ""
        if deviation.not_compared:
            return f"promised exact outputs and changed the shape of {', '.join(deviation.not_compared)}"
        worst = max(deviation.outputs, key=lambda output: output.rounding)
        return f"promised exact outputs and changes {worst.name} by up to {worst.max_abs:.3g}, more than rounding"


def _check_given(program: Program) -> None:
    """Programs that were edited from each other share their symbols: a pass that fixed a size has fixed it for all."""
    try:
        verify(program)
    except VerifierError as error:
        raise InputError(
            f"the Program that was given is malformed: {error}; where a pass failed on it before, capture the model "
            "again"
        ) from error


def _samples(
    program: Program, calibration: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None
) -> list[Mapping[str, Tensor]]:
    if calibration is None:
        calibration = program.example_inputs
    samples = [calibration] if isinstance(calibration, Mapping) else list(calibration)
    if not samples or not all(samples):
        raise InputError("promises are checked on data: pass calibration=, a list of inputs by name")
    return samples


def _sites(instance: Pass, program: Program) -> list[Site]:
    found = instance.legality(program)
    if isinstance(found, Refusal):
        layer = ""
        if found.node:
            layer = program.find(found.node).meta.get("layer") or ""
        where = f" at {found.node}" if found.node else ""
        raise RefusedError(
            f"{instance.name} cannot act here: {found.reason}{where}{f' in {layer}' if layer else ''}"
        )
    if not isinstance(found, list):
        raise VerifierError(f"legality returned a {type(found).__name__}, neither sites nor a Refusal")
    return found


def _rewritten(instance: Pass, program: Program, sites: list[Site]) -> Program:
    after = instance.rewrite(program, sites)
    if not isinstance(after, Program):
        raise VerifierError(f"rewrite returned a {type(after).__name__}, not a Program")
    if after is not program:
        after.finished()
    verify(after)
    if isinstance(instance, Cleanup):
        return after
    cleanup = Cleanup()
    after = cleanup.rewrite(after, cleanup.legality(after))
    verify(after)
    verify_other_sizes(after)
    return after
