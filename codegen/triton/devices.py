"""Where kernels can run here."""

from __future__ import annotations

import torch

from tersor.ir.errors import LoweringError


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
