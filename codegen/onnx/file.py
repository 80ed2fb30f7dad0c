"""Writing models without holding their weights twice.

A serialized message is the sum of its fields in any order, so that the graph is written first and the weights are
appended to it one by one as the bytes of a ``TensorProto``, or go to a second file that the graph points into.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

# protobuf refuses messages of 2 GB; some headroom for what engines add when they rewrite a model.
SINGLE_FILE_LIMIT = 2**31 - 2**26
# A smaller weight (a constant, mostly) stays in the graph part, where shape inference can read it.
INLINE_BYTES = 1024
_ALIGNMENT = 4096
_HASH_DIGITS = 12

# (field number << 3 | 2): a length-delimited field.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7 << 3 | 2, 5 << 3 | 2, 9 << 3 | 2


@dataclass(frozen=True)
class Weight:
    """A weight that is stored apart from the graph."""

    name: str
    tensor: Tensor
    kind: ir.DataType

    @property
    def nbytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()

    def header(self) -> onnx.TensorProto:
        return onnx.TensorProto(name=self.name, dims=list(self.tensor.shape), data_type=int(self.kind))

    def data(self) -> memoryview:
        """The bytes; a weight that is a view of another layout is copied for as long as it is written."""
        flat = self.tensor.contiguous().reshape(-1)
        return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def split_weights(model: ir.Model) -> tuple[onnx.ModelProto, list[Weight]]:
    """The model as a message without its large weights, and those weights."""
    initializers = model.graph.initializers
    large = [
        v for v in initializers.values() if v.const_value is not None and v.const_value.nbytes > INLINE_BYTES
    ]
    for value in large:
        del initializers[str(value.name)]
    try:
        proto = ir.serde.serialize_model(model)
    finally:
        for value in large:
            initializers[str(value.name)] = value
    return proto, [
        Weight(str(v.name), _tensor(v), v.const_value.dtype) for v in large if v.const_value is not None
    ]


def external(proto: onnx.ModelProto, weights: list[Weight], location: str) -> onnx.ModelProto:
    """``proto`` with every weight pointing into the file ``location`` at the offsets of :func:`offsets`."""
    for weight, offset in zip(weights, offsets(weights), strict=True):
        tensor = weight.header()
        point_to(tensor, location, offset, weight.nbytes)
        proto.graph.initializer.append(tensor)
    return proto


def point_to(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    """Make the content of ``tensor`` a range of bytes of the file ``location``, which lies beside the model."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def offsets(weights: list[Weight]) -> list[int]:
    """Where each weight starts in the data file: on page boundaries, so that engines can map it."""
    starts, position = [], 0
    for weight in weights:
        starts.append(position)
        position += -(-weight.nbytes // _ALIGNMENT) * _ALIGNMENT
    return starts


def write(model: ir.Model, path: Path, limit: int = SINGLE_FILE_LIMIT) -> list[Path]:
    """Write ``model`` to ``path``; from ``limit`` bytes on its weights go to ``<name>.<hash>.data`` beside it.

    The files appear under their names only when they are complete.  Returns them, the graph first.
    """
    proto, weights = split_weights(model)
    total = proto.ByteSize() + sum(w.nbytes + 1024 for w in weights)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = [Path(folder) / path.name]
        if total >= limit:
            written.append(_write_weights(weights, written[0]))
        with written[0].open("wb") as stream:
            if total < limit:
                _write_single(proto, weights, stream)
            else:
                stream.write(external(proto, weights, written[1].name).SerializeToString())
        return put_in_place(written, path)


def put_in_place(written: Sequence[Path], path: Path) -> list[Path]:
    """Give a written model the name ``path``, over the model that may stand there, and take away the latter's weights.

    Wherever it is stopped, one of the two stands there whole: weights are named by their content, so that no graph
    points into those of another.

    Args:
        written: the graph and then its weights, as :func:`write` returned them, on the same file system.
    """
    graph, *data = written
    moved = [path.with_name(file.name) for file in data]
    present, replaced = {file for file in moved if file.exists()}, set(weights_beside(path))
    try:
        for source, target in zip(data, moved, strict=True):
            os.replace(source, target)  # noqa: PTH105
        os.replace(graph, path)  # noqa: PTH105
    finally:
        unused = set(moved) - present if graph.exists() else replaced - set(moved)
        for file in unused:
            file.unlink(missing_ok=True)
    return [path, *moved]


def weights_beside(path: Path) -> list[Path]:
    """The files that the model ``path`` keeps its weights in, of those that :func:`write` names after it."""
    own = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{_HASH_DIGITS}}}\.data")
    files = [file for file in path.parent.iterdir() if own.fullmatch(file.name)]
    if not files:
        return []
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError):
        return []
    named = {entry.value for t in graph.initializer for entry in t.external_data if entry.key == "location"}
    return [file for file in files if file.name in named]


def _write_weights(weights: list[Weight], graph: Path) -> Path:
    """Write the weights of ``graph`` beside it, into a file that is named by a hash of its bytes."""
    content = hashlib.sha256()
    nameless = graph.with_name("weights")
    with nameless.open("wb") as stream:
        for weight, offset in zip(weights, offsets(weights), strict=True):
            for part in (bytes(offset - stream.tell()), weight.data()):
                stream.write(part)
                content.update(part)
    return nameless.rename(graph.with_name(f"{graph.name}.{content.hexdigest()[:_HASH_DIGITS]}.data"))


def _write_single(proto: onnx.ModelProto, weights: list[Weight], stream: BinaryIO) -> None:
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    headers = [w.header().SerializeToString() for w in weights]
    raw = [TENSOR_RAW_DATA.to_bytes(1, "little") + varint(w.nbytes) for w in weights]
    bodies = [len(h) + len(r) + w.nbytes for h, r, w in zip(headers, raw, weights, strict=True)]
    length = len(graph) + sum(1 + len(varint(body)) + body for body in bodies)
    stream.write(proto.SerializeToString())
    stream.write(MODEL_GRAPH.to_bytes(1, "little") + varint(length) + graph)
    for weight, header, tag, body in zip(weights, headers, raw, bodies, strict=True):
        stream.write(GRAPH_INITIALIZER.to_bytes(1, "little") + varint(body) + header + tag)
        stream.write(weight.data())


def varint(number: int) -> bytes:
    """A number as serialized messages hold it."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary name beside ``path`` that takes its place at the end, and leaves nothing on failure."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as stream:
            yield stream
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


def _tensor(value: ir.Value) -> Tensor:
    raw = value.const_value.raw if value.const_value is not None else None
    if isinstance(raw, Tensor):
        return raw.detach().cpu()
    assert value.const_value is not None
    return torch.from_numpy(value.const_value.numpy().copy())
