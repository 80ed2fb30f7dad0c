"""What ONNX Runtime raises, as errors that name the node, the reason and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir
from torch import Tensor

from tersor.ir.errors import ExecutionError

_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NO_KERNEL = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'")
_NO_TYPE = re.compile(
    r"Type 'tensor\((\w+)\)' of input parameter \(.*?\) of operator \((\w+)\) in node \(([^)]*)\)"
)
_AT_NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", re.DOTALL)
# In these ONNX Runtime's CPU provider lacks most kernels; float16 it computes in float32 where it has none.
_RARE = (ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def load_failure(error: Exception, model: ir.Model | None, providers: list[str]) -> str:
    """The message for an error that ONNX Runtime raised while it loaded a model (None: known as a file only)."""
    text = _PREFIX.sub("", str(error))
    if typed := _NO_TYPE.search(text):
        dtype, kind, name = typed.groups()
    elif found := _NO_KERNEL.search(text):
        kind, name = found.groups()
        dtype = (_dtype(model, name) or "") if model is not None else ""
    else:
        return text
    where = "/".join(p.removesuffix("ExecutionProvider") for p in providers)
    return (
        f"ONNX Runtime has no {where} kernel for {kind}{f' in {dtype}' if dtype else ''}"
        f"{f' (node {name!r})' if name else ''}; convert the model with model.float(), or use target='torch'"
    )


def _dtype(model: ir.Model, name: str) -> str | None:
    """The element type of the node called ``name``; of a node that ONNX Runtime made itself, the model's rarest."""
    values = [v for node in model.graph if node.name == name for v in (*node.inputs, *node.outputs) if v]
    values = values or [*model.graph.inputs, *model.graph.initializers.values()]
    dtypes = {v.dtype for v in values}
    return next((_torch_name(dtype) for dtype in _RARE if dtype in dtypes), None)


def _torch_name(dtype: ir.DataType) -> str:
    return {"DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())


def run_failure(error: Exception, inputs: Mapping[str, Tensor]) -> ExecutionError:
    """The error for what ONNX Runtime raised while it ran a model on ``inputs``."""
    text = _PREFIX.sub("", str(error))
    found = _AT_NODE.search(text)
    where, reason = (f" at node {found[2]!r} ({found[1]})", found[3]) if found else ("", text)
    given = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in inputs.items())
    return ExecutionError(
        f"ONNX Runtime failed{where}: {reason.strip()}; the inputs were {given}. "
        "See whether target='torch' takes the same inputs: if it does, this is a defect of the lowering"
    )
