"""Compare a captured Program with the model it came from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..analyses.real_tokens import real_tokens, take_real
from ..analyses.rounding import rounding_allowances
from ..errors import CaptureError
from ..program import Program
from ..structure import Structure
from .dims import BATCH, repeated_row, resized, without_one

# Further inputs on which a Program is compared, as it takes them.
Samples = Callable[[Program], Sequence[Mapping[str, Tensor]]]

# Epsilons that are left where terms near one cancel.
_CANCELLED = 8


def compare_with_model(program: Program, expected: Any, model: Callable[..., Any]) -> Program:
    """``program`` with its deviation: the largest on the example and at another batch and length, padding left out.

    A batch of one is left out where it alone is something else to the model, and the same row twice is not.

    Args:
        expected: what the model returned for the example.

    Raises:
        CaptureError: a difference no rounding explains, or an output that nests otherwise at the other size; the
            message names output, sizes and both magnitudes.
    """
    worst, alone = compare_on(program, program.example_inputs, expected), False
    for inputs in resized(program):
        try:
            expected = model(**inputs)
        except Exception:
            # A size that the model itself rejects, in whatever way, says nothing about the capture.
            continue
        try:
            if not nests_as(program.structure, expected):
                raise CaptureError(
                    f"on inputs {_sizes(inputs)} the model returns its tensors in another nest than for the example: "
                    "make its output one for all sizes, or pass dynamic={} to fix them"
                )
            worst = max(worst, compare_on(program, inputs, expected))
            break
        except CaptureError:
            if not right_of_two(program, inputs, model):
                raise
            # Other sizes show the rest.
            alone = True
    program = program.with_facts(deviation=worst)
    return without_one(program, BATCH) if alone else program


def right_of_two(program: Program, inputs: Mapping[str, Tensor], model: Callable[..., Any]) -> bool:
    """Whether the Program is what the model is for two rows, both the only one that ``inputs`` hold.

    False where they do not hold one, or where the model takes no such two.
    """
    two = repeated_row(program, inputs)
    try:
        return two is not None and agrees(program, two, model(**two))
    except Exception:  # Whatever the model's code raises there.
        return False


def agrees(program: Program, inputs: Mapping[str, Tensor], result: Any) -> bool:
    """Whether the Program computes what the model returned for ``inputs``, in one nest with it."""
    if not nests_as(program.structure, result):
        return False
    try:
        compare_on(program, inputs, result)
    except CaptureError:
        return False
    return True


def nests_as(structure: Structure, result: Any) -> bool:
    """Whether a model's result nests as ``structure`` says."""
    try:
        return Structure.of(result) == structure
    except TypeError:
        return False


def _sizes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(t.shape)}" for name, t in inputs.items())


def compare_on(
    program: Program, inputs: Mapping[str, Tensor], result: Any, rows: Rows | None = None
) -> float:
    """Largest absolute difference from what the model returned for ``inputs``, padding left out.

    Args:
        rows: those that count; all of them if None.

    Raises:
        CaptureError: as :func:`compare_with_model`.
    """
    return Computed.on(program, inputs).compare(result, rows)


@dataclass(frozen=True)
class Rows:
    """Which rows count.

    Attributes:
        size: the dim that numbers them, as the Program's inputs and outputs state it.
        count: bool, one for each.
        padding: whether their padding counts too.
    """

    size: int | str
    count: Tensor
    padding: bool = False


@dataclass(frozen=True)
class Computed:
    """What a Program computes on some inputs, to hold results of the model against."""

    program: Program
    sizes: str
    outputs: tuple[Tensor, ...]
    real: Mapping[str, Tensor]

    @classmethod
    def on(cls, program: Program, inputs: Mapping[str, Tensor]) -> Computed:
        """Raises CaptureError where the graph rejects the inputs."""
        sizes = _sizes(inputs)
        bound = program.bind(**inputs)
        try:
            outputs = program.run(bound)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split("While executing")[0].split())[:300]
            raise CaptureError(
                f"the captured graph rejects inputs {sizes}, which the model takes ({reason}): a size was fixed while "
                "tracing. Take it from the tensor's shape in the model; name it in dynamic for every input that has "
                "it; or pass dynamic={} to fix all sizes"
            ) from error
        # What a model computes at padding is nobody's result: a row that sees nothing is a mean in one kernel and zero
        # in another.
        return cls(program, sizes, outputs, real_tokens(program, bound))

    def compare(self, result: Any, rows: Rows | None = None) -> float:
        """As :func:`compare_on`."""
        worst = 0.0
        allowances = rounding_allowances(self.program)
        for spec, want, got in zip(
            self.program.outputs, Structure.flatten(result), self.outputs, strict=True
        ):
            if got.dim() != len(spec.shape):
                raise CaptureError(
                    f"output {spec.name!r} is {list(got.shape)} on inputs {self.sizes}, and has {len(spec.shape)} dims "
                    "at other sizes: name the dim that squeeze() is to remove, or pass dynamic={} to fix all sizes"
                )
            # The model's own result may have another shape, which no mask fits.
            if want.shape == got.shape:
                real = self.real.get(spec.name) if rows is None or not rows.padding else None
                if rows is not None and spec.shape[:1] == (rows.size,):
                    want, got = want[rows.count], got[rows.count]
                    real = None if real is None else real.expand(len(rows.count), -1)[rows.count]
                want, got = take_real(want, real), take_real(got, real)
            difference, scale = _difference(want, got)
            if math.isnan(difference) and bool(want.isnan().any()):
                raise CaptureError(
                    f"output {spec.name!r} of the model itself holds NaN on inputs {self.sizes}, so that nothing can "
                    "be compared with it: a query whose mask hides every key from softmax gives NaN, and so do "
                    "weights and inputs that are not finite"
                )
            if not _is_rounding(difference, scale, want.dtype, allowances[spec.name]):
                raise CaptureError(
                    f"output {spec.name!r} of the captured graph differs from the model by {difference:.3g} (where "
                    f"they differ, its values reach {scale:.3g}) on inputs {self.sizes}: the model's result depends "
                    "on state, chance or on Python values that were fixed while tracing. Make it a function of its "
                    "inputs, or pass dynamic={} to fix all sizes"
                )
            worst = max(worst, difference)
        return worst


def _is_rounding(difference: float, scale: float, dtype: torch.dtype, allowance: float) -> bool:
    """Whether reordered sums explain a difference in an output of ``dtype``.

    Where terms near one cancel, they leave some epsilons: those of ``dtype``.  Of a coarser one that the output was
    computed in, they would be more than most probabilities are.
    """
    if difference == 0.0:
        return True
    if not math.isfinite(difference):
        return False
    return difference <= allowance * scale + _CANCELLED * torch.finfo(dtype).eps


def _difference(want: Tensor, got: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest magnitude of the entries of ``want`` that differ.

    A mask's -1e9 among logits says nothing of how exact the others are.
    """
    if want.shape != got.shape or want.dtype != got.dtype:
        return math.inf, 0.0
    if torch.equal(want, got):
        return 0.0, 0.0
    if not want.is_floating_point():
        return math.inf, 0.0
    if want.element_size() < 4:
        want, got = want.float(), got.float()
    differs = (want != got) & ~(want.isnan() & got.isnan())
    want, got = want[differs], got[differs]
    if not want.numel():
        return 0.0, 0.0
    return float((want - got).abs_().max()), float(want.abs().max())
