"""``optimize_model``: capture, rewrite, lower, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from .agreement import at_other_sizes, check_agreement
from .calibration import Batch, bind_batches, device_of, list_batches
from .imports import module_text
from .ir.capture import capture
from .ir.capture.frontend import Dynamic
from .ir.errors import InputError
from .ir.program import Program
from .lowering import lower, target_with_options
from .manifest import Manifest
from .model import OptimizedModel
from .onnx_file import report_metadata
from .passes import pipeline
from .passes.blame import outside_kinds
from .passes.cleanup.cleanup import parts
from .passes.contract import Pass
from .passes.pipeline import OnViolation
from .passes.spec import parse_spec
from .profit import Profit
from .progress import Report as Progress
from .progress import Steps
from .runtime.session import Session
from .storing import lower_stored


def optimize_model(
    model: nn.Module | str | Path | Program,
    passes: str | Pass | Sequence[str | Pass] = (),
    target: str = "onnx",
    example_inputs: Any = None,
    calibration: Any = None,
    max_deviation: float | None = None,
    on_violation: OnViolation = "raise",
    require_speedup: bool | None = None,
    dynamic: Dynamic = "auto",
    ops: str | None = None,
    weights: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> OptimizedModel:
    """A model that takes the same inputs, gives the same output structure, and runs faster.

    Args:
        model: what ``tersor.capture`` takes, or a Program.
        passes: one spec string such as ``"token-drop:method=tome,flops=0.65"``, one pass, or several of them in the
            order to apply them.
        target: what runs the result: ``onnx``, ``torch`` or ``triton``.
        example_inputs: as for ``capture``; the first calibration batch where there is none.
        calibration: what promises are checked and speed is measured on: one batch (a mapping of names to tensors,
            a tensor, or a tuple of positional inputs) or an iterable of batches.  The example inputs without it.
        max_deviation: largest deviation (mean cosine distance over the outputs) that approximate passes may reach
            together.
        on_violation: ``"raise"``, or ``"revert"`` to go on without a pass that is refused or breaks its promise.
        require_speedup: revert passes whose result is no faster than without them, timed paired on the target with
            the first calibration batch; on when calibration is given.
        dynamic: as for ``capture``.
        ops: ``portable`` or ``ort``, for ONNX: standard operators only, or ONNX Runtime's own too (the default).
        weights: how matrices are stored, for ONNX: ``fp32`` (the default), a kind of ``codegen/onnx/weights/`` such as
            ``int8``, or ``auto``, the smallest that costs at most 1%; see ``tersor.storing`` for what is measured.
        threads: threads of one session; all cores by default.
        progress: called as a step begins, with its name, the number of steps done and the number of steps.
        options: further options of the target, such as ``compile=True`` for torch.

    Raises:
        SpecError, InputError: found before the model is read wherever they can be.
        CaptureError: the model cannot be captured.
        RefusedError, PromiseError: a pass cannot act, or broke its promise, or weights cannot be stored as asked for
            what they may cost, and ``on_violation`` is ``"raise"``.
        LoweringError: the target has no form for an operator, or computed something else.
    """
    instances = _instances(passes)
    _, lowering = target_with_options(target, {"ops": ops, "weights": weights, "threads": threads, **options})
    _check_policy(max_deviation, on_violation, require_speedup)
    batches = list_batches(calibration) if calibration is not None else []
    if require_speedup is None:
        require_speedup = bool(batches) and bool(instances)
    # Clean-up counts as a pass of the pipeline's own.
    steps = Steps(progress, total=len(instances) + 4)
    steps.begin("capturing the model")
    if isinstance(model, Program):
        source = model
    else:
        source = capture(
            model,
            example_inputs if example_inputs is not None or not batches else batches[0],
            dynamic,
            lambda program: bind_batches(program, batches),
        )
    samples = bind_batches(source, batches) or [source.bind(**source.example_inputs)]
    rewritten, report = pipeline.run(
        source,
        instances,
        calibration=samples,
        max_deviation=max_deviation,
        on_violation=on_violation,
        measure=_profit(target, lowering, _as_given(samples[0], batches), steps.detail)
        if require_speedup and instances
        else None,
        require_speedup=require_speedup and bool(instances),
        progress=steps.begin,
    )
    steps.begin(f"lowering to {target}")
    if lowering.get("weights", "fp32") == "fp32":
        executable = lower(rewritten, target, lowering)
        steps.begin(f"comparing {target} with the Program")
        check_agreement(executable, rewritten, [samples[0]], target, at_other_sizes(rewritten))
    else:
        # Rounded weights are no rounding of sums: in place of agreement there is a measured loss.
        found = lower_stored(rewritten, target, lowering, samples, bool(batches), on_violation, steps.detail)
        steps.begin(f"comparing {target} with the Program")
        rewritten, executable, lowering = found.program, found.executable, found.options
        report = replace(report, storage=found.storage, notes=(*report.notes, *found.notes))
    executable.describe(report_metadata(report))
    manifest = Manifest(
        target,
        lowering,
        rewritten.structure,
        rewritten.ranges,
        rewritten.least,
        rewritten.facts.fixed,
        rewritten.stepping,
        calibrated=bool(batches),
        imports=_outside_modules(instances),
    )
    session = Session(
        executable, rewritten.structure, rewritten.ranges, rewritten.least, rewritten.facts.fixed
    )
    return OptimizedModel(session, manifest, report, samples, program=rewritten, source=source)


def _instances(passes: Any) -> list[Pass]:
    given = [passes] if isinstance(passes, str | Pass) else passes
    if not isinstance(given, Iterable):
        raise InputError(
            f"passes is a {type(passes).__name__}: give spec strings, such as passes=['token-drop']"
        )
    instances = []
    for spec in given:
        if not isinstance(spec, str | Pass):
            raise InputError(
                f"a {type(spec).__name__} is no pass: give spec strings, such as passes=['token-drop']"
            )
        instances.append(parse_spec(spec))
    return instances


def _check_policy(max_deviation: Any, on_violation: Any, require_speedup: Any) -> None:
    choices = get_args(OnViolation)
    if on_violation not in choices:
        raise InputError(f"on_violation={on_violation!r} is none of {', '.join(choices)}")
    number = isinstance(max_deviation, int | float) and not isinstance(max_deviation, bool)
    if max_deviation is not None and not (number and max_deviation >= 0):
        raise InputError(f"max_deviation={max_deviation!r} is no deviation: give a number from 0 up")
    if require_speedup not in (None, True, False):
        raise InputError(f"require_speedup={require_speedup!r} is none of True, False, None")


def _outside_modules(instances: Sequence[Pass]) -> tuple[str, ...]:
    """Modules and files outside Tersor that define one of the passes, a method in a slot of theirs, or clean-up."""
    names = {kind.__module__ for instance in (*instances, *parts()) for kind in outside_kinds(instance)}
    return tuple(sorted(map(module_text, names)))


def _as_given(sample: Batch, batches: Sequence[Any]) -> Batch:
    """The first batch on the device where it was given: on that one its results are wanted fast."""
    device = device_of(batches[0]) if batches else torch.device("cpu")
    return {name: value.to(device) for name, value in sample.items()}


def _profit(target: str, lowering: dict[str, Any], batch: Batch, tell: Callable[[str], None]) -> Profit:
    # How weights are stored is settled behind all passes, which are timed without.
    plain = {key: value for key, value in lowering.items() if key not in ("weights", "weight_kinds")}
    found, options = target_with_options(target, plain)
    return Profit(found, options, batch, tell)
