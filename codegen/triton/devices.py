"""Where kernels can run here, and a graph's own device constants."""

from __future__ import annotations

import torch
from torch import fx

from tersor.ir.errors import LoweringError
from tersor.ir.operands import arguments
from tersor.ir.program import Program


def execution_device() -> torch.device:
    """The GPU, or the CPU when Triton interprets.

    Raises:
        LoweringError: triton is not installed, was imported before it was told to interpret, or there is neither
            a GPU nor the interpreter.
    """
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        raise LoweringError(
            f"target 'triton' needs the triton package ({error}): pip install 'tersor[gpu]'"
        ) from error
    wanted = bool(triton.knobs.runtime.interpret)
    # Triton's own library functions took one side when triton was imported, and kernels must be on the same.
    if wanted != (type(tl.sum).__name__ == "InterpretedFunction"):
        raise LoweringError(
            "TRITON_INTERPRET was changed after triton had been imported: set it before Python starts"
        )
    if wanted:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    raise LoweringError(
        "target 'triton' needs a GPU, and torch sees none: run on a machine with one, use target='onnx' or "
        "'torch', or set TRITON_INTERPRET=1 before Python starts to interpret the kernels on the CPU (slow; for tests)"
    )


def move_constants(program: Program, device: torch.device) -> None:
    """Let every node of ``program`` (an edited copy) that names or implies a device name ``device``."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        node.args = fx.node.map_aggregate(node.args, lambda a: device if isinstance(a, torch.device) else a)
        node.kwargs = fx.node.map_aggregate(
            node.kwargs, lambda a: device if isinstance(a, torch.device) else a
        )
        if _makes_a_tensor(node):
            node.kwargs = {**node.kwargs, "device": device}


def _makes_a_tensor(node: fx.Node) -> bool:
    """Whether ``node`` creates a tensor from no tensor, and names no device to create it on."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or all(argument.name != "device" for argument in schema.arguments):
        return False
    if arguments(node)["device"] is not None:
        return False
    return not any(isinstance(n.meta.get("val"), torch.Tensor) for n in node.all_input_nodes)
