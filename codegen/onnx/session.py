"""ONNX Runtime sessions over Program tensors, with no copy on the way in or out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tersor.ir.errors import ArtifactError, InputError, LoweringError

from .emitter import MICROSOFT
from .failures import load_failure, run_failure
from .file import external, split_weights
from .in_place import weights_in_place

CPU = "CPUExecutionProvider"
_MATRIX_READERS = {("", "MatMul"), ("", "Gemm"), ("", "Conv"), ("", "Gather"), (MICROSOFT, "MatMulNBits")}


def runtime() -> Any:
    """The onnxruntime module.

    Raises:
        InputError: it is not installed; the message names what to install.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            "target='onnx' runs in ONNX Runtime, which is not installed: pip install 'tersor[cpu]' "
            "(or 'tersor[gpu]'), or use target='torch'; writing .onnx files works without it"
        ) from error
    return onnxruntime


def session_options(threads: int | None) -> Any:
    """Options of a session: ``threads`` per operator (None: one per core)."""
    options = runtime().SessionOptions()
    # Fatal only: what fails is raised, and comes to the user as our error.
    options.log_severity_level = 4
    # Threads that go on spinning behind a run take cores from what chooses the token, and from another session's run.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def chosen_providers(providers: Sequence[str] | None) -> list[str]:
    """Execution providers in order of preference; CUDA, where present, before the CPU.

    Raises:
        InputError: a provider that this ONNX Runtime does not have.
    """
    available = runtime().get_available_providers()
    if providers is None:
        return [p for p in ("CUDAExecutionProvider", CPU) if p in available]
    for provider in providers:
        if provider not in available:
            raise InputError(
                f"ONNX Runtime here has no {provider}; it has {', '.join(available)}. "
                "For CUDA: pip install 'tersor[gpu]'"
            )
    return list(providers)


def session_from_model(model: ir.Model, options: Any, providers: list[str]) -> Any:
    """A session that reads the model's weights where the Program holds them.

    Raises:
        LoweringError: ONNX Runtime refuses the model.
    """
    ort = runtime()
    proto, weights = split_weights(model)
    held = [to_runtime(w.tensor) for w in weights]
    options.add_external_initializers([w.name for w in weights], held)
    matrices = _read_as_stored(model)
    for weight, value in zip(weights, held, strict=True):
        # Without this the session copies every weight that is left after its graph transformations; but one that
        # these have transposed or reshaped under its own name would be taken back.
        if weight.name in matrices:
            options.add_initializer(weight.name, value)
    try:
        return ort.InferenceSession(
            external(proto, weights, "weights").SerializeToString(), options, providers=providers
        )
    except Exception as error:
        reason = load_failure(error, model, providers)
        raise LoweringError(f"ONNX Runtime refuses the lowered model: {reason}") from error


def _read_as_stored(model: ir.Model) -> set[str]:
    """Names of the weights that only operators read through which no transposition is moved."""
    return {name for name, value in model.graph.initializers.items() if _is_matrix(value)}


def _is_matrix(value: ir.Value) -> bool:
    readers = [use.node for use in value.uses()]
    return all(
        (node.domain, node.op_type) in _MATRIX_READERS
        or (node.op_type == "Transpose" and not node.domain and _is_matrix(node.outputs[0]))
        for node in readers
    )


def session_from_file(path: Path, options: Any, providers: list[str]) -> Any:
    """A session over a file.

    Raises:
        ArtifactError: the file is missing, damaged, or holds operators that this ONNX Runtime does not know.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; save the artifact again")
    return _opened(path, str(path), options, providers)


def _opened(path: Path, model: str | bytes, options: Any, providers: list[str]) -> Any:
    try:
        return runtime().InferenceSession(model, options, providers=providers)
    except Exception as error:
        reason = load_failure(error, None, providers)
        raise ArtifactError(f"ONNX Runtime cannot load {path}: {reason}") from error


def trial_session(path: Path) -> Any:
    """A session that runs a file once to see what it computes, for little time and memory.

    Fusions and packed weights pay over many runs; for one run they cost time and memory.

    Raises:
        ArtifactError: the file is damaged, or ONNX Runtime does not know its operators.
    """
    options = session_options(None)
    options.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    options.enable_cpu_mem_arena = False
    try:
        model = weights_in_place(path)
    except ValueError as error:
        raise ArtifactError(f"{path} is no ONNX model: {error}") from error
    return _opened(path, model, options, chosen_providers(None))


def run(session: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Run ``session``; outputs share memory with the session's own results.

    Raises:
        ExecutionError: ONNX Runtime fails; the message names the node and the inputs.
    """
    try:
        feeds = {name: to_runtime(value.detach()) for name, value in inputs.items()}
        return tuple(to_torch(value) for value in session.run_with_ort_values(None, feeds))
    except Exception as error:
        raise run_failure(error, inputs) from error


def to_runtime(value: Tensor) -> Any:
    """An OrtValue of a CPU tensor; up to 1.30 at least, ONNX Runtime's DLPack knows no bool, which goes by NumPy."""
    ort = runtime()
    if value.dtype == torch.bool:
        return ort.OrtValue.ortvalue_from_numpy(value.contiguous().numpy())
    return ort.OrtValue.from_dlpack(value.contiguous())


def to_torch(value: Any) -> Tensor:
    """A tensor over an OrtValue; where ONNX Runtime hands bool over as uint8, it is bool again."""
    tensor = from_dlpack(value)
    if tensor.dtype == torch.uint8 and value.data_type() == "tensor(bool)":
        return tensor.view(torch.bool)
    return tensor
