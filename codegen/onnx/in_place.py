"""A written file run from where it lies: its graph read, its weights mapped.

ONNX Runtime parses a file into one copy of the weights and turns that into another.  A weight that is said to be
external is mapped instead, and the bytes after any offset of any file will do: those of the file itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from .file import GRAPH_INITIALIZER, INLINE_BYTES, MODEL_GRAPH, TENSOR_RAW_DATA, point_to, varint

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class _Field:
    """A field of a serialized message: its key, where it starts and ends, and where its content does."""

    key: int
    start: int
    content: int
    end: int


def weights_in_place(path: Path) -> bytes:
    """The model in the file ``path``, serialized, with every large weight as a range of bytes of that file.

    Raises:
        ValueError: the file is no ONNX model.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        model = bytearray()
        for field in _fields(data, 0, len(data)):
            if field.key == MODEL_GRAPH:
                graph = _graph(data, field, path.name)
                model += bytes([MODEL_GRAPH]) + varint(len(graph)) + graph
            else:
                model += data[field.start : field.end]
        return bytes(model)


def _graph(data: mmap.mmap, graph: _Field, location: str) -> bytes:
    written = bytearray()
    for field in _fields(data, graph.content, graph.end):
        if field.key == GRAPH_INITIALIZER and field.end - field.content > INLINE_BYTES:
            tensor = _tensor(data, field, location)
            written += bytes([GRAPH_INITIALIZER]) + varint(len(tensor)) + tensor
        else:
            written += data[field.start : field.end]
    return bytes(written)


def _tensor(data: mmap.mmap, tensor: _Field, location: str) -> bytes:
    fields = list(_fields(data, tensor.content, tensor.end))
    raw = [field for field in fields if field.key == TENSOR_RAW_DATA]
    if len(raw) != 1:
        return data[tensor.content : tensor.end]
    rest = b"".join(data[field.start : field.end] for field in fields if field not in raw)
    proto = onnx.TensorProto.FromString(rest)
    point_to(proto, location, raw[0].content, raw[0].end - raw[0].content)
    return proto.SerializeToString()


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[_Field]:
    while position < end:
        start = position
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _LENGTH:
            length, position = _read_varint(data, position)
            content, position = position, position + length
        elif kind == _VARINT:
            content, (_, position) = position, _read_varint(data, position)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            content, position = position, position + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ValueError(f"no serialized message: field kind {kind} at byte {start}")
        if position > end:
            raise ValueError(
                f"no serialized message: the field at byte {start} ends at {position}, past {end}"
            )
        yield _Field(key, start, content, position)


def _read_varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    number = shift = 0
    while True:
        if position >= len(data):
            raise ValueError("no serialized message: it ends within a number")
        byte = data[position]
        number |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return number, position
        shift += 7
