"""What is checked of a model before it is run: it is valid ONNX, and as dynamic as its Program."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from tersor.ir.errors import LoweringError
from tersor.ir.program import Program, TensorSpec

MICROSOFT = "com.microsoft"


def check_model(model: ir.Model, portable: bool) -> None:
    """Run the ONNX checker, and see that no operator is outside the promised set.

    Raises:
        LoweringError: the checker's finding, or the operators' names.
    """
    allowed = {""} if portable else {"", MICROSOFT}
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in model.graph.all_nodes() if n.domain not in allowed})
    if foreign:
        raise LoweringError(
            f"the lowered model uses operators outside the promised set: {', '.join(foreign)}"
        )
    try:
        common_passes.CheckerPass()(model)
    except Exception as error:
        raise LoweringError(f"the ONNX checker refuses the lowered model: {error}") from error


def assert_dynamic(model: ir.Model, program: Program) -> None:
    """See that every dynamic dim of the Program's inputs and outputs is dynamic in the model under its name.

    Raises:
        LoweringError: a dim was fixed, lost or renamed; the message names the tensor and the dim.
    """
    for values, specs in ((model.graph.inputs, program.inputs), (model.graph.outputs, program.outputs)):
        if len(values) != len(specs):
            raise LoweringError(
                f"the model has {len(values)} inputs or outputs where the program has {len(specs)}"
            )
        for value, spec in zip(values, specs, strict=True):
            _same_dims(value, spec)


def _same_dims(value: ir.Value, spec: TensorSpec) -> None:
    dims = [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else []
    if len(dims) != len(spec.shape):
        raise LoweringError(
            f"{value.name!r} has {len(dims)} dims in the model and {len(spec.shape)} in the program"
        )
    for position, (have, want) in enumerate(zip(dims, spec.shape, strict=True)):
        if have != want:
            raise LoweringError(
                f"dim {position} of {value.name!r} is {want} in the program and {have} in the model: a dynamic size "
                "was specialised, which is a defect of the lowering"
            )
