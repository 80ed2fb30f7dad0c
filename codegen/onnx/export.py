"""From a Program to a checked model and to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from tersor.ir.errors import InputError
from tersor.ir.program import Program

from .checks import assert_dynamic, check_model
from .emitter import Ops
from .file import SINGLE_FILE_LIMIT, write
from .translate import translate


def build(
    program: Program,
    ops: Ops = "portable",
    metadata: Mapping[str, str] | None = None,
    *,
    store_transposed: bool = True,
) -> ir.Model:
    """Lower ``program``, check the model, and see that it is as dynamic as the Program.

    Args:
        ops: ``portable`` for the standard operator set, ``ort`` to allow ONNX Runtime's own operators.
        metadata: texts for the model's ``metadata_props``.
        store_transposed: linear weights are stored transposed; else the graph transposes them.

    Raises:
        LoweringError: an operator has no ONNX form, or the model fails a check.
    """
    model = translate(program, ops, metadata, store_transposed=store_transposed)
    check_model(model, portable=ops == "portable")
    assert_dynamic(model, program)
    return model


def export(
    program: Program,
    path: str | os.PathLike[str],
    *,
    ops: Ops = "portable",
    metadata: Mapping[str, str] | None = None,
    limit: int = SINGLE_FILE_LIMIT,
) -> list[Path]:
    """Write ``program`` as an ONNX file and return the files written.

    Args:
        path: where to; below ``limit`` bytes one file, above it the weights go to ``<name>.data`` beside it.

    Raises:
        LoweringError: as :func:`build`.
        InputError: the folder does not exist or the path is one.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"cannot write {path}: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
        )
    return write(build(program, ops, metadata), path, limit)
