"""From a Program to a checked model and to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnxscript.optimizer import fold_constants_ir

from tersor.ir.errors import InputError
from tersor.ir.program import Program

from .checks import assert_dynamic, check_model
from .emitter import Ops
from .file import SINGLE_FILE_LIMIT, write
from .translate import translate
from .weights.kind import Stored

_SHORT = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def build(
    program: Program,
    ops: Ops = "portable",
    metadata: Mapping[str, str] | None = None,
    *,
    stored: Mapping[str, Stored] | None = None,
    for_session: bool = False,
) -> ir.Model:
    """Lower ``program``, check the model, and see that it is as dynamic as the Program.

    Args:
        ops: ``portable`` for the standard operator set, ``ort`` to allow ONNX Runtime's own operators.
        metadata: texts for the model's ``metadata_props``.
        stored: the weights that are stored otherwise than the Program holds them, by name.
        for_session: leave to ONNX Runtime, which does both while it loads, what is otherwise done here: onnxscript's
            optimiser, and storing linear weights transposed (a second copy of them in this process).

    Raises:
        LoweringError: an operator has no ONNX form, or the model fails a check.
    """
    model = translate(program, ops, metadata, stored=stored, for_session=for_session)
    if not for_session:
        tidy(model)
    check_model(model, portable=ops == "portable")
    assert_dynamic(model, program)
    return model


def tidy(model: ir.Model) -> None:
    """onnxscript's folding and onnx-ir's clean-up.

    The rest of onnxscript's optimiser is left out: its rewrite rules take longer than all that is done here, and find
    hardly anything in what the lowerings write.  Shapes are known from the Program.
    """
    fold_constants_ir(model, onnx_shape_inference=False, should_fold=_is_no_stored_weight)
    ir.passes.Sequential(
        common_passes.RemoveUnusedNodesPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.DeduplicateInitializersPass(),
        common_passes.CommonSubexpressionEliminationPass(),
        common_passes.OutputFixPass(),
        common_passes.NameFixPass(),
    )(model)


def _is_no_stored_weight(node: ir.Node) -> bool | None:
    """False for what makes float32 of a weight that is stored in 16 bits; None, which leaves it open, for all else."""
    source = node.inputs[0] if node.op_type == "Cast" else None
    short = source is not None and source.is_initializer() and source.dtype in _SHORT
    return False if short else None


def export(
    program: Program,
    path: str | os.PathLike[str],
    *,
    ops: Ops = "portable",
    metadata: Mapping[str, str] | None = None,
    stored: Mapping[str, Stored] | None = None,
    limit: int = SINGLE_FILE_LIMIT,
) -> list[Path]:
    """Write ``program`` as an ONNX file and return the files written.

    Args:
        path: where to; below ``limit`` bytes one file, above it the weights go to ``<name>.<hash>.data`` beside it.
        stored: as :func:`build`.

    Raises:
        LoweringError: as :func:`build`.
        InputError: the folder does not exist or the path is one.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"cannot write {path}: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
        )
    return write(build(program, ops, metadata, stored=stored), path, limit)
