"""Whether a lowered program computes what its Program computes, up to rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from .calibration import Batch
from .codegen.input_domains import check_inputs
from .codegen.target import Executable
from .ir.analyses.rounding import coarsest_dtypes, rounding_allowances
from .ir.capture.dims import example_at
from .ir.errors import ExecutionError, InputError, LoweringError, TersorError
from .ir.program import Program
from .passes.deviation import Deviation, OutputDeviation, Reference

# Weights moved by this much, relatively, make a Program compute as another order of summation would.
_ROUNDING_NOISE = 1e-6
# Each of two moves, one the other turned around: of two equal scores, each move puts another in front.
_PROBES = 3
# Sizes below it are not tried in place of larger ones.
_LEAST = 3


def measure(executable: Executable, reference: Reference) -> Deviation:
    """How far the executable's outputs are from the reference's, over the reference's samples."""
    names = [spec.name for spec in executable.outputs]
    return reference.compare_outputs(
        dict(zip(names, executable.run(sample), strict=True)) for sample in reference.samples
    )


def check_agreement(
    executable: Executable,
    program: Program,
    samples: Sequence[Batch],
    target: str,
    others: Sequence[Batch] = (),
) -> Deviation:
    """Raise unless ``executable`` computes what ``program`` computes on ``samples``, up to rounding.

    A Program that selects tokens is not continuous: where two scores are equal but for rounding, another kernel
    may keep the other token.  So where the outputs of a Program that chooses differ by more than rounding, it is run
    with weights that differ by rounding, and the executable passes if that moves the Program as far.

    Args:
        others: further samples, left out where the Program does not take them.

    Raises:
        LoweringError: the outputs differ by more than that; the message names the output.
    """
    others = [sample for sample in others if _is_taken(executable, sample)]
    try:
        reference = Reference(program, [*samples, *others])
    except (TersorError, RuntimeError, IndexError, ValueError):
        if not others:
            raise
        reference = Reference(program, samples)
    try:
        deviation = measure(executable, reference)
    except ExecutionError as error:
        raise LoweringError(f"{target} fails where the Program runs: {error}") from error
    if deviation.is_rounding:
        return deviation
    if (
        not deviation.not_compared
        and deviation.finite
        and _chooses(program)
        and _within_own_response(deviation, program, reference)
    ):
        return deviation
    raise LoweringError(_message(deviation, target))


def _is_taken(executable: Executable, sample: Batch) -> bool:
    try:
        # What drives steps is not the caller's.
        check_inputs(sample, [domain for domain in executable.domains if domain.input in sample])
    except InputError:
        return False
    return True


def at_other_sizes(program: Program) -> list[Batch]:
    """The example at another size of every dimension that may vary, which shows one that a lowering has fixed.

    Empty where none may vary; the Program itself may not run at these sizes.
    """
    own = program.sizes()
    varying = {dim for spec in program.called_with for dim in spec.shape if isinstance(dim, str)}
    sizes: dict[str, int] = {}
    for name in varying & program.ranges.keys():
        low, high = program.ranges[name]
        # One that becomes 1 would be broadcast to whatever was fixed.
        smaller, larger = own[name] // 2, own[name] + 1
        other = smaller if smaller >= max(low, _LEAST) else larger
        if high is None or other <= high:
            sizes[name] = other
    return [example_at(program, sizes)] if sizes else []


def _chooses(program: Program) -> bool:
    """Whether whole numbers or truth values are made of values that weights have a part in.

    That is every choice: an order, an index, a comparison.  What is made of sizes alone is none.
    """
    weighed: set[fx.Node] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "get_attr":
            if program.weights[node.target].is_floating_point():
                weighed.add(node)
        elif not weighed.isdisjoint(node.all_input_nodes):
            if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex()):
                return True
            # A size is no value of the tensor that it is read from.
            if isinstance(value, Tensor | list | tuple):
                weighed.add(node)
    return False


def _within_own_response(deviation: Deviation, program: Program, reference: Reference) -> bool:
    """Whether every output is moved as far by weights that differ from the Program's by rounding."""
    allowances = rounding_allowances(program)
    left = {output.name: output for output in deviation.outputs if output.rounding > 1.0}
    for weights in _moves(program):
        for own in reference.compare(replace(program, weights=weights)).outputs:
            if own.name in left and _as_far(left[own.name], own, allowances[own.name]):
                del left[own.name]
        if not left:
            return True
    return False


def _as_far(output: OutputDeviation, own: OutputDeviation, allowance: float) -> bool:
    """Whether the Program's own response, ``own``, is as large as the deviation of an output, but for rounding."""
    if math.isinf(output.relative_l2):
        # Of an output that is zero every difference is infinitely much.
        return output.max_abs <= own.max_abs * (1 + allowance)
    return output.relative_l2 <= own.relative_l2 * (1 + allowance)


def _moves(program: Program) -> Iterator[dict[str, Tensor]]:
    """Weights that differ from the Program's by rounding in the coarsest dtype that it computes an output in."""
    dtypes = [dtype for dtype in coarsest_dtypes(program).values() if dtype.is_floating_point]
    least = max([_ROUNDING_NOISE, *(torch.finfo(dtype).eps for dtype in dtypes)])
    for seed in range(_PROBES):
        for sign in (1, -1):
            generator = torch.Generator().manual_seed(seed)
            yield {name: _moved(weight, generator, sign, least) for name, weight in program.weights.items()}


def _moved(weight: Tensor, generator: torch.Generator, sign: int, least: float) -> Tensor:
    if not weight.is_floating_point():
        return weight
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    size = max(least, torch.finfo(weight.dtype).eps)
    return weight + (weight.float() * noise * (sign * size)).to(weight.dtype)


def _message(deviation: Deviation, target: str) -> str:
    if deviation.not_compared:
        what = f"output {deviation.not_compared[0]!r} is missing or has another shape"
    elif not deviation.outputs:
        what = "no output could be compared"
    else:
        worst = max(deviation.outputs, key=lambda output: (not output.finite, output.rounding))
        what = f"output {worst.name!r} differs by {worst.max_abs:.3g}, {worst.rounding:.3g} times rounding's share"
        what = what if worst.finite else f"output {worst.name!r} holds values that are not finite"
    return (
        f"the program lowered to {target} does not compute what the Program computes: {what}. This is a defect of "
        "the lowering: please report it with the model's configuration and the passes; target='torch' runs the "
        "Program itself"
    )
