"""Save and load Programs: a JSON graph beside a safetensors file.  Nothing in them is executed, nothing pickled."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx

from .errors import ArtifactError
from .graph_json import decode_graph, encode_graph
from .inference import inference_of
from .program import ModelFacts, Program, TensorSpec
from .shapes import SymbolTable, dtype_text
from .stepping import Stepping
from .structure import Structure
from .verifier import verify

VERSION = 1
GRAPH_FILE, TENSORS_FILE = "program.json", "program.safetensors"
_EXAMPLE = "example:"
_WEIGHT = "weight:"


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Write ``program`` to ``path``.

    Args:
        path: a folder, which gets ``program.json`` and ``program.safetensors``; or a name that ends in
            ``.safetensors``, for one file that holds the graph in its header.

    Raises:
        ArtifactError: the program holds something that JSON cannot carry, or the files cannot be written.
    """
    path = Path(path)
    tensors, layouts, ties = _stored(program)
    try:
        text = json.dumps(_header(program, layouts, ties), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"this program cannot be saved: {error}") from error
    try:
        if path.suffix == ".safetensors":
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_tensors(tensors, path, {"tersor": text})
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write_tensors(tensors, path / TENSORS_FILE, {})
            _replace(path / GRAPH_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"cannot write {path}: {error}") from error


def load(path: str | os.PathLike[str]) -> Program:
    """Read what :func:`save` wrote, check it and rebuild every value's shape.

    Raises:
        ArtifactError: a file is missing, damaged, of another version, or asks for something the IR does not have.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            tensors, metadata = _read_tensors(path)
            text = metadata["tersor"]
        else:
            tensors, _ = _read_tensors(path / TENSORS_FILE)
            text = (path / GRAPH_FILE).read_text(encoding="utf-8")
        header = json.loads(text)
        version = header["tersor"]
        if version != VERSION:
            raise ArtifactError(f"{path} has format version {version!r}, this Tersor reads {VERSION}")
        program = _program(header, tensors)
        if weights_hash(program.weights) != header["weights_sha256"]:
            raise ArtifactError(f"the weights in {path} are not the ones its graph was saved with")
        verify(program, shapes=False)
        return program
    except ArtifactError:
        raise
    except FileNotFoundError as error:
        raise ArtifactError(f"{error.filename or path} does not exist; is {path} a saved program?") from error
    except Exception as error:
        # Any malformed content ends here: files come from elsewhere, and no error of theirs is a defect of ours.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(
            f"{path} is damaged or not a saved program: {type(error).__name__}: {reason[0]}"
        ) from error


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, independent of order and of strides."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu()
        digest.update(f"{name}:{dtype_text(tensor.dtype)}:{list(tensor.shape)};".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _header(program: Program, layouts: Mapping[str, list[int]], ties: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tersor": VERSION,
        "torch": torch.__version__,
        "inputs": [spec.to_json() for spec in program.inputs],
        "outputs": [spec.to_json() for spec in program.outputs],
        "structure": program.structure.to_json(),
        "ranges": {name: list(bounds) for name, bounds in program.ranges.items()},
        "domains": {name: list(bounds) for name, bounds in program.domains.items()},
        "fillers": program.fillers,
        "least": program.least,
        "stepping": None if program.stepping is None else program.stepping.to_json(),
        "facts": asdict(program.facts),
        "notes": program.notes,
        "weights": list(program.weights),
        "weights_sha256": weights_hash(program.weights),
        "layouts": layouts,
        "ties": ties,
        "nodes": encode_graph(program.graph),
    }


def _program(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    inputs = tuple(map(TensorSpec.from_json, header["inputs"]))
    examples = {k.removeprefix(_EXAMPLE): v for k, v in tensors.items() if k.startswith(_EXAMPLE)}
    weights = {
        name: _restored(tensors[_WEIGHT + name], header["layouts"].get(name))
        for name in header["weights"]
        if name not in header["ties"]
    }
    weights = {name: weights[header["ties"].get(name, name)] for name in header["weights"]}
    graph = decode_graph(header["nodes"])
    table = SymbolTable()
    _give_values(graph, table, inputs, weights, examples)
    facts = header["facts"]
    return Program(
        graph=graph,
        weights=weights,
        inputs=inputs,
        outputs=tuple(map(TensorSpec.from_json, header["outputs"])),
        structure=Structure.from_json(header["structure"]),
        symbols=table.names,
        ranges={
            name: (int(low), None if high is None else int(high))
            for name, (low, high) in header["ranges"].items()
        },
        example_inputs={spec.name: examples[spec.name] for spec in inputs if spec.name in examples},
        facts=ModelFacts(**{**facts, "unraised": tuple((name, why) for name, why in facts["unraised"])}),
        notes=dict(header["notes"]),
        domains=_decode_domains(header["domains"], inputs),
        fillers=_decode_fillers(header["fillers"], inputs),
        least={str(name): str(why) for name, why in header["least"].items()},
        stepping=None if header["stepping"] is None else Stepping.from_json(header["stepping"]),
    )


def _give_values(
    graph: fx.Graph,
    table: SymbolTable,
    inputs: Iterable[TensorSpec],
    weights: Mapping[str, Tensor],
    examples: Mapping[str, Tensor],
) -> None:
    specs = {spec.name: spec for spec in inputs}
    infer = inference_of(table.mode)
    for node in graph.nodes:
        if node.op == "placeholder":
            spec = specs[str(node.target)]
            example = examples.get(spec.name)
            sizes = [
                size
                if isinstance(size, int)
                else table.symbol(size, 2 if example is None else example.shape[dim])
                for dim, size in enumerate(spec.shape)
            ]
            node.meta["val"] = table.tensor(sizes, spec.dtype)
        elif node.op == "get_attr":
            node.meta["val"] = table.constant(weights[str(node.target)])
        elif node.op == "call_function":
            node.meta["val"] = infer(node)


def _stored(program: Program) -> tuple[dict[str, Tensor], dict[str, list[int]], dict[str, str]]:
    """Contiguous tensors to write; the stride order of those that are not contiguous; and who shares with whom."""
    tensors: dict[str, Tensor] = {}
    layouts: dict[str, list[int]] = {}
    ties: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, weight in program.weights.items():
        strides = weight.stride()
        key = (weight.data_ptr(), weight.dtype, tuple(weight.shape), strides, weight.storage_offset())
        owner = first.setdefault(key, name) if weight.numel() else name
        if owner != name:
            ties[name] = owner
            continue
        order = sorted(range(weight.dim()), key=lambda dim: (-strides[dim], dim))
        dense = weight.permute(order)
        if dense.is_contiguous() and order != sorted(order):
            layouts[name] = order
        else:
            dense = weight
        tensors[_WEIGHT + name] = _owned(dense)
    tensors |= {_EXAMPLE + name: _owned(value) for name, value in program.example_inputs.items()}
    return tensors, layouts, ties


def _owned(tensor: Tensor) -> Tensor:
    """Contiguous on the CPU and alone in its storage, as safetensors takes it."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone else tensor.clone()


def _restored(tensor: Tensor, order: list[int] | None) -> Tensor:
    if order is None:
        return tensor
    return tensor.permute([order.index(dim) for dim in range(len(order))])


def _write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    _replace(path, lambda temporary: save_file(tensors, temporary, {"format": "pt", **metadata}))


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _replace(path: Path, write: Any) -> None:
    """Write to a name beside ``path``, then rename, so that no reader ever sees half a file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        # safetensors makes files that only their owner can read.
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _decode_domains(
    data: Mapping[str, Any], inputs: Iterable[TensorSpec]
) -> dict[str, tuple[int | None, int | None]]:
    _check_names(data, inputs)
    domains = {}
    for name, (low, high) in data.items():
        domains[name] = (None if low is None else int(low), None if high is None else int(high))
    return domains


def _decode_fillers(
    data: Mapping[str, Any], inputs: Iterable[TensorSpec]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    _check_names(data, inputs)
    return {name: tuple(tuple(map(int, numbers)) for numbers in sets) for name, sets in data.items()}


def _check_names(data: Mapping[str, Any], inputs: Iterable[TensorSpec]) -> None:
    if unknown := data.keys() - {spec.name for spec in inputs}:
        raise ValueError(f"what unknown inputs may hold: {', '.join(sorted(unknown))}")
