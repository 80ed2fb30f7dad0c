"""Whether a lowered program computes what its Program computes, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from .calibration import Batch
from .codegen.target import Executable
from .ir.errors import LoweringError
from .ir.program import Program
from .passes.deviation import Deviation, Reference

# Weights moved by this much, relatively, make a Program compute as another order of summation would.
_ROUNDING_NOISE = 1e-6
_PROBES = 3


def measure(executable: Executable, reference: Reference) -> Deviation:
    """How far the executable's outputs are from the reference's, over the reference's samples."""
    names = [spec.name for spec in executable.outputs]
    outputs = [dict(zip(names, executable.run(sample), strict=True)) for sample in reference.samples]
    return reference.compare_outputs(outputs)


def check_agreement(
    executable: Executable, program: Program, samples: Sequence[Batch], target: str
) -> Deviation:
    """Raise unless ``executable`` computes what ``program`` computes on ``samples``, up to rounding.

    A Program that selects tokens is not continuous: where two scores are equal but for rounding, another kernel
    may keep the other token.  So where the outputs of a Program that chooses differ by more than rounding, it is run
    with weights that differ by rounding, and the executable passes if that moves the Program as far.

    Raises:
        LoweringError: the outputs differ by more than that; the message names the output.
    """
    reference = Reference(program, samples)
    deviation = measure(executable, reference)
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
    own: dict[str, float] = {}
    for seed in range(_PROBES):
        generator = torch.Generator().manual_seed(seed)
        weights = {name: _moved(weight, generator) for name, weight in program.weights.items()}
        for output in reference.compare(replace(program, weights=weights)).outputs:
            own[output.name] = max(own.get(output.name, 0.0), output.relative_l2)
    return all(
        output.rounding <= 1.0 or output.relative_l2 <= own[output.name] for output in deviation.outputs
    )


def _moved(weight: Tensor, generator: torch.Generator) -> Tensor:
    if not weight.is_floating_point():
        return weight
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    size = max(_ROUNDING_NOISE, torch.finfo(weight.dtype).eps)
    return weight + (weight.float() * noise * size).to(weight.dtype)


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
