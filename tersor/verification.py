"""Run a certificate's measurements again and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import artifact
from .agreement import at_other_sizes, check_agreement, measure
from .calibration import batches_hash, load_batches
from .certificate import changed_files, read_certificate
from .ir import archive
from .ir.analyses.cost import Totals
from .ir.analyses.rounding import rounding_allowances
from .ir.archive import weights_hash
from .ir.capture import capture
from .ir.capture.check import Samples
from .ir.capture.sources import find_source
from .ir.errors import (
    ArtifactError,
    CaptureError,
    InputError,
    LoweringError,
    PromiseError,
    RefusedError,
    SpecError,
)
from .ir.program import SMOOTHED, Program
from .ir.structure import Structure
from .manifest import Manifest, check_interface, read_manifest
from .passes import pipeline
from .passes.deviation import Deviation, OutputDeviation, Reference
from .passes.report import Report, Step, totals_at
from .passes.smoothing import smoothing_sites
from .progress import Report as Progress
from .progress import Steps
from .same_text import other_text
from .saved_report import read_deviation

# Another machine's kernels sum in another order.  The direction of an output moves by far less than its largest
# element may, and both by no more than a small part of a deviation that is there anyway.
_DIRECTION_SHARE = 0.05
_RELATIVE_SLACK = 0.01
# Where activations are rounded to few bits, other kernels round other ones of them up.
_STORED_SLACK = 0.1


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, whether it holds, and the numbers."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """All findings; verification stops after the first stage that fails, because the next would rest on it."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        return "\n".join(f"{'ok    ' if c.ok else 'FAILED'}  {c.name}: {c.detail}" for c in self.checks)


def verify_artifact(
    folder: Path, against: nn.Module | str | Path | Program | None = None, progress: Progress | None = None
) -> Verification:
    """Check an artifact's files and run its measurements again.

    Args:
        against: the model that the artifact was made from: its weights are compared with the certified ones, every
            pass is applied again, and the saved executable is measured against it.  Without it, the executable is
            compared with the Program beside it.

    Raises:
        InputError: ``folder`` holds no artifact, or ``against`` no model.
        CaptureError: the model cannot be captured.
    """
    steps = Steps(progress, total=5 if against is not None else 3)
    read_manifest(folder)
    checks: list[Check] = []
    for check in _stages(folder, against, steps):
        checks.append(check)
        if not check.ok:
            break
    return Verification(tuple(checks))


def _stages(folder: Path, against: Any, steps: Steps) -> Iterator[Check]:
    steps.begin("checking files")
    certificate = read_certificate(folder)
    problems = changed_files(folder, certificate)
    count = len(certificate["files"])
    yield Check("files", not problems, "; ".join(problems) or f"{count} files have their certified content")

    steps.begin("reading the artifact")
    samples = load_batches(folder / artifact.SAMPLES)
    program = archive.load(folder)
    hashes = {
        "inputs": (batches_hash(samples), certificate["inputs"]["sha256"]),
        "weights": (weights_hash(program.weights), certificate["program"]["weights_sha256"]),
    }
    for name, (found, recorded) in hashes.items():
        yield Check(name, found == recorded, f"sha256 {found[:12]}, certified {recorded[:12]}")

    manifest, report = read_manifest(folder), artifact.read_saved_report(folder)
    session = artifact.read_session(folder, manifest, {})
    problem = check_interface(folder, session.executable, program, report)
    yield Check("interface", not problem, problem or _interface_text(program))
    problem = _contradiction(certificate, manifest, report, len(samples))
    yield Check("records", not problem, problem or "certificate, report and manifest say the same")
    yield _count_again(program, report, samples[0])

    steps.begin("running the artifact")
    slack = _RELATIVE_SLACK if report.storage is None else _STORED_SLACK
    if report.storage is None:
        yield _agreement(session.executable, program, samples)
    else:
        found_deviation = measure(session.executable, Reference(program, samples))
        told = f"artifact against its Program, weights {report.storage.kept.kind}"
        yield _compare(told, found_deviation, report.storage.deviation, program, slack)
    if against is None:
        return

    steps.begin("capturing the model")
    try:
        # The Program that all else is measured against is the model's own on these inputs.
        source = capture_like(against, program, lambda source: [source.bind(**sample) for sample in samples])
        for sample in samples:
            source.bind(**sample)
    except (InputError, CaptureError) as error:
        if not isinstance(against, Program):
            find_source(against)  # Raises where there is no model at all, which says nothing of the artifact.
        yield Check("model", False, f"it does not take what the artifact takes: {error}")
        return
    found, recorded = weights_hash(source.weights), certificate["model"]["weights_sha256"]
    told = f"sha256 {found[:12]}, certified {recorded[:12]}"
    if found != recorded:
        told = f"{other_model(source, program, certificate['model'].get('family'))}: {told}"
    yield Check("model", found == recorded, told)
    other = other_text(source, program, folder)
    yield Check("text", not other, other or "the same tokenizer and settings of generation")

    steps.begin("applying the passes again")
    yield from _passes_again(source, program, report, manifest, samples)
    measured = measure(session.executable, Reference(source, samples))
    yield _compare(
        "artifact against model", measured, read_deviation(certificate["measured"]), program, slack
    )


def _agreement(executable: Any, program: Program, samples: Any) -> Check:
    name = "artifact against its Program"
    try:
        deviation = check_agreement(executable, program, samples, "the artifact", at_other_sizes(program))
    except LoweringError as error:
        return Check(name, False, str(error))
    return Check(name, True, f"differs by {deviation.overall:.2g}")


def capture_like(
    against: nn.Module | str | Path | Program, program: Program, samples: Samples | None = None
) -> Program:
    """The model captured as it was for ``program``: with the same inputs and the same dimensions."""
    if isinstance(against, Program):
        return against
    dynamic = {
        spec.name: {position: size for position, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in program.called_with
        if spec.dynamic
    }
    return capture(against, {**program.example_inputs, **program.facts.fixed}, dynamic, samples)


def other_model(source: Program, program: Program, family: Any) -> str:
    """How ``source`` is another model than the one that ``program`` was made from, whose weights are not its own."""
    if source.facts.family != family:
        return f"it is a {source.facts.family}, and the artifact was made from a {family}"
    # Those that smoothing scaled differ in any case.
    sites = smoothing_sites(program) if SMOOTHED in program.notes else []
    scaled = {name for site in sites for name, _ in (*site.readers, *site.makers)}
    common = sorted(source.weights.keys() & program.weights.keys() - scaled)
    for what, differs in (("shape", _other_shape), ("values", _other_values)):
        names = [name for name in common if differs(source.weights[name], program.weights[name])]
        if names:
            count = f"{len(names)} of {len(source.weights)}"
            return f"its weights are others, {count} by their {what}, such as {names[0]}"
    return "its weights are others"


def _other_shape(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or a.dtype != b.dtype


def _other_values(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


def _interface_text(program: Program) -> str:
    given, taken = (
        ", ".join(spec.name for spec in specs) for specs in (program.called_with, program.returned)
    )
    return f"{given} -> {taken}"


def _contradiction(certificate: Mapping[str, Any], manifest: Manifest, report: Report, samples: int) -> str:
    """What the certificate says otherwise than the report, the manifest or the inputs; nothing when all agree."""
    if not report.steps:
        return "the report has no steps, not even the clean-up that every pipeline begins with"
    if certificate["passes"] != report.to_json()["steps"]:
        return "the certificate names other passes or measurements than the report"
    inputs = certificate["inputs"]
    if inputs["samples"] != samples or (inputs["kind"] == "calibration") != manifest.calibrated:
        return "the certificate says otherwise than the manifest what was measured on"
    return ""


def _count_again(program: Program, report: Report, sample: Mapping[str, Tensor]) -> Check:
    """What the report says that the artifact's own Program costs, and at which sizes."""
    sizes = program.sizes(sample)
    if report.sizes != sizes:
        return Check("sizes", False, f"costs are stated at {report.sizes}, and the inputs are {sizes}")
    found = totals_at(program, sizes)
    told = "" if found == report.after else f", the report says {_amount(report.after)}"
    return Check("counts", not told, f"the program takes {_amount(found)}{told}")


def _passes_again(
    source: Program, program: Program, recorded: Report, manifest: Manifest, samples: Any
) -> Iterator[Check]:
    # The pipeline starts with a clean-up of its own, which is the first step of every report.
    kept = [step for step in recorded.steps[1:] if step.verdict == "kept"]
    try:
        rewritten, report = pipeline.run(source, [step.spec for step in kept], calibration=samples)
    except (SpecError, InputError, RefusedError, PromiseError) as error:
        hint = ""
        if isinstance(error, SpecError) and manifest.imports:
            hint = (
                f"; it was defined outside Tersor, in {', '.join(manifest.imports)}: import that first (--import on "
                "the command line)"
            )
        yield Check("passes", False, f"cannot be applied again: {error}{hint}")
        return
    yield _compare_first(recorded.steps[0], report.steps[0])
    totals, again = report.steps[0].after, iter(report.steps[1:])
    for old in recorded.steps[1:]:
        if old.verdict == "kept":
            new = next(again)
            totals = new.after
            yield _compare_step(old, new, source)
        elif problem := _other_counts(old, replace(old, before=totals, after=totals)):
            yield Check(old.spec, False, f"was {old.verdict}; {problem}")
    yield _compare("passes together", report.deviation, recorded.deviation, source)
    yield _compare_interface(program, rewritten)


def _compare_interface(program: Program, rewritten: Program) -> Check:
    """Whether an artifact's Program takes and gives what the model does after the same passes."""
    values: dict[str, tuple[Any, Any]] = {
        "inputs": (program.inputs, rewritten.inputs),
        "dimensions": (program.ranges, rewritten.ranges),
        "reasons for dimensions": (program.least, rewritten.least),
        "fixed arguments": (program.facts.fixed, rewritten.facts.fixed),
        "outputs": (program.outputs, rewritten.outputs),
    }
    if not _same_structure(program.structure, rewritten.structure):
        values["output structure"] = (program.structure.to_json(), rewritten.structure.to_json())
    for name, (own, models) in values.items():
        if own != models:
            return Check("model's interface", False, f"its {name}, {own}, should be {models} for this model")
    return Check("model's interface", True, _interface_text(rewritten))


def _same_structure(a: Structure, b: Structure) -> bool:
    """Whether two structures are equal, where a class of the script that ran may be one of a module by now."""
    names = [a.type_name, b.type_name]
    if any(name.startswith("__main__:") for name in names):
        names = [name.partition(":")[2] for name in names]
    return (a.kind, a.keys, names[0], len(a.children)) == (b.kind, b.keys, names[1], len(b.children)) and all(
        map(_same_structure, a.children, b.children)
    )


def _compare_step(old: Step, new: Step, source: Program) -> Check:
    if new.verdict != "kept" or new.deviation is None:
        return Check(old.spec, False, f"was kept, and is {new.verdict} now: {new.reason}")
    name = f"{old.spec} ({old.promise.value})"
    problem = _other_counts(old, new)
    if problem:
        return Check(name, False, problem)
    check = _compare(name, new.deviation, old.deviation, source)
    if old.latency_ratio is None:
        return check
    return replace(check, detail=f"{check.detail}; its latency, {old.latency_ratio:.3f}x, is not verified")


def _compare_first(old: Step, new: Step) -> Check:
    """The clean-up that the pipeline begins with: it may have found nothing to do, as the one that saved it."""
    if (old.spec, old.verdict) != (new.spec, new.verdict):
        return Check(old.spec, False, f"was {old.verdict}, and is {new.spec}, {new.verdict}, now")
    problem = _other_counts(old, new)
    return Check(old.spec, not problem, problem or f"{len(new.sites)} sites, {_cost(new)}")


def _other_counts(old: Step, new: Step) -> str:
    """What a step states otherwise than it is, of all that is counted and not timed; empty when nothing."""
    if (old.family, old.promise) != (new.family, new.promise):
        return f"its promise is {new.promise.value}, of family {new.family}, certified {old.promise.value}"
    # A node's name is the exporter's, and another version may choose another.
    stated, found = (
        [(site["layer"], site["facts"]) for site in step.to_json()["sites"]] for step in (old, new)
    )
    if stated != found:
        return f"acts on {len(found)} sites, {found}, certified {len(stated)}, {stated}"
    if (old.before, old.after) != (new.before, new.after):
        return f"costs {_cost(new)}, certified {_cost(old)}"
    return ""


def _cost(step: Step) -> str:
    return f"{_amount(step.before)} before, {_amount(step.after)} after"


def _amount(totals: Totals | None) -> str:
    if totals is None:
        return "an unknown amount"
    return f"{totals.flops} FLOPs, {totals.bytes} bytes and {totals.parameters} parameters"


def _compare(
    name: str,
    found: Deviation | None,
    recorded: Deviation | None,
    program: Program,
    slack: float = _RELATIVE_SLACK,
) -> Check:
    """Whether ``found`` is no larger than ``recorded``, beyond rounding and a share ``slack``."""
    if recorded is None or found is None:
        return Check(name, found is recorded, "the certificate holds no measurement")
    told = f"deviates by {found.overall:.6g}, certified {recorded.overall:.6g}"
    allowances = rounding_allowances(program)
    before = {output.name: output for output in recorded.outputs}
    for output in found.outputs:
        worse = _worse(output, before.get(output.name), allowances.get(output.name, 0.0), slack)
        if worse:
            return Check(name, False, f"{told}; {worse}")
    missing = sorted(set(found.not_compared) - set(recorded.not_compared))
    if missing:
        return Check(name, False, f"{told}; {', '.join(missing)} cannot be compared any more")
    return Check(name, True, told)


def _worse(
    found: OutputDeviation, recorded: OutputDeviation | None, allowance: float, relative: float
) -> str:
    if recorded is None:
        return f"output {found.name!r} was not measured"
    slack: Mapping[str, tuple[float, Callable[[OutputDeviation], float]]] = {
        "cosine distance": (_DIRECTION_SHARE * allowance, lambda output: output.cosine_distance),
        "relative distance": (allowance, lambda output: output.relative_l2),
    }
    for what, (absolute, of) in slack.items():
        if not of(found) <= of(recorded) * (1 + relative) + absolute:
            return f"output {found.name!r}: {what} {of(found):.6g}, certified {of(recorded):.6g}"
    return ""


def raise_unless_ok(verification: Verification) -> Verification:
    """Raise ArtifactError for the first check that failed."""
    for check in verification.checks:
        if not check.ok:
            raise ArtifactError(f"verification failed: {check.name}: {check.detail}")
    return verification
