"""Measures one row of the capture matrix; the test and ``docs/coverage.md`` both come from here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from architectures import VOCABULARY, Architecture
from torch import Tensor, nn

from tersor.codegen.onnx import export
from tersor.codegen.target import find_target
from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.errors import TersorError
from tersor.ir.program import Program, TensorSpec
from tersor.ir.structure import Structure
from tersor.passes.contract import Refusal
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec

BATCH, LENGTHS = 3, (13, 9, 4)
# Of the outputs' largest magnitude: sums in another order, through a few layers, and ONNX Runtime's own kernels.
TORCH_TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4
# Methods by what attention is; where it is causal, importance by PageRank says nothing.
DROPS, CACHE = ("token-drop", "token-drop:method=received-attention"), "kv-cache"


@dataclass(frozen=True)
class Row:
    """What capture did with one architecture.

    Attributes:
        deviation: largest difference from the model at another batch and length, padding left out.
        onnx: the same for the portable ONNX file of the cleaned Program, None where it was not asked for or not
            reached.
        problem: why the row does not pass, empty when it does.
        drops, caches: why tokens cannot be dropped, and why there is no key-value cache; empty where that is legal,
            or the row does not pass.
    """

    architecture: Architecture
    found: int | None = None
    deviation: float | None = None
    dynamic: tuple[str, ...] = ()
    onnx: float | None = None
    problem: str = ""
    drops: str = ""
    caches: str = ""

    @property
    def legal(self) -> list[str]:
        """What the page says of both."""
        return ["-" if self.problem else "no" if why else "yes" for why in (self.drops, self.caches)]


def measure(architecture: Architecture, onnx: bool) -> Row:
    """Capture, count, and compare with the model on inputs of another batch and length, with padding.

    ONNX is reached as users reach it, after clean-up: only then do layers share nodes, and so masks.
    """
    model = architecture.build()
    try:
        program = capture(model, architecture.inputs() if architecture.inputs else None)
    except TersorError as error:
        return Row(architecture, problem=str(error))
    found = sum(is_dialect(node, "attention") for node in program.graph.nodes)
    dynamic = tuple(dict.fromkeys(dim for spec in program.inputs for dim in spec.dynamic))
    inputs = other_inputs(program)
    expected = model_outputs(model, inputs)
    scale = max(float(t.abs().max()) for t in expected)
    deviation = largest_difference(expected, program.run(inputs), inputs)
    problem = ""
    if found != architecture.attention:
        reasons = "; ".join(reason for _, reason in program.facts.unraised)
        problem = f"{found} of {architecture.attention} attention layers: {reasons or 'no reason given'}"
    elif "batch" not in dynamic:
        problem = "the batch is fixed"
    elif not deviation <= (0 if architecture.exact else TORCH_TOLERANCE * scale):
        problem = f"differs from the model by {deviation:.2g} on other sizes"
    if problem:
        return Row(architecture, found, deviation, dynamic, problem=problem)
    cleaned, _ = run(program, [])
    refusals = [refused(cleaned, spec) for spec in DROPS]
    passes = {"drops": "" if "" in refusals else refusals[-1], "caches": refused(cleaned, CACHE)}
    if not onnx:
        return Row(architecture, found, deviation, dynamic, **passes)
    try:
        differences = {
            "the ONNX file": largest_difference(expected, run_as_file(cleaned, inputs), inputs),
            "a session with ONNX Runtime's own operators": largest_difference(
                expected, find_target("onnx").lower(cleaned, ops="ort").run(inputs), inputs
            ),
        }
    except TersorError as error:
        return Row(architecture, found, deviation, dynamic, problem=f"ONNX: {error}", **passes)
    problems = [
        f"{what} differs from the model by {difference:.2g} on other sizes"
        for what, difference in differences.items()
        if not difference <= ONNX_TOLERANCE * scale
    ]
    onnx_difference = differences["the ONNX file"]
    return Row(architecture, found, deviation, dynamic, onnx_difference, "; ".join(problems), **passes)


def refused(program: Program, spec: str) -> str:
    """Why a pass cannot act on ``program``; empty where it can."""
    found = parse_spec(spec).legality(program)
    return found.reason if isinstance(found, Refusal) else ""


def run_as_file(program: Program, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What plain ONNX Runtime makes of the portable file that a user would be handed."""
    with tempfile.TemporaryDirectory() as folder:
        (path,) = export(program, Path(folder) / "model.onnx", ops="portable")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return tuple(map(torch.from_numpy, outputs))


def other_inputs(program: Program) -> dict[str, Tensor]:
    """Inputs of a batch and length other than the example's, rows of different lengths padded at the end."""
    return {spec.name: _other(spec, program.example_inputs[spec.name]) for spec in program.inputs}


def _other(spec: TensorSpec, example: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    sizes = {"batch": BATCH, "tokens": max(LENGTHS), "samples": example.shape[-1] + 61}
    shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
    if example.dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    if spec.name == "attention_mask":
        return (torch.arange(shape[1])[None] < torch.tensor(LENGTHS)[:, None]).to(example.dtype)
    return torch.randint(3, VOCABULARY, shape, generator=generator)


def model_outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the untouched model returns, without caches."""
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return Structure.flatten(model(**inputs, **options))
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def largest_difference(
    expected: list[Tensor], actual: tuple[Tensor, ...], inputs: dict[str, Tensor]
) -> float:
    """Over all outputs; rows of padding are nobody's result and left out."""
    if len(expected) != len(actual):
        return float("inf")
    mask = inputs.get("attention_mask")
    worst = 0.0
    for want, got in zip(expected, actual, strict=True):
        if want.shape != got.shape:
            return float("inf")
        if mask is not None and want.shape[:2] == mask.shape:
            want, got = want[mask.bool()], got[mask.bool()]
        gap = float((want.double() - got.double()).abs().max())
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst
