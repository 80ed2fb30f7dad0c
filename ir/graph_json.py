"""A Program's graph as JSON: nodes by name, targets by name, every argument tagged by its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .targets import find_target, target_name

_LAYOUTS = {str(kind).removeprefix("torch."): kind for kind in (torch.strided, torch.sparse_coo)}
_MEMORY_FORMATS = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)
}
_OPS = {"placeholder", "get_attr", "call_function", "output"}


def encode_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """One record a node, in graph order.

    Raises:
        ValueError: a node calls or holds something that JSON cannot carry; the message names the node.
    """
    return [_encode_node(node) for node in graph.nodes]


def decode_graph(records: list[dict[str, Any]]) -> fx.Graph:
    """The inverse of :func:`encode_graph`; nodes carry ``meta["layer"]`` and no values.

    Raises:
        ValueError, KeyError, TypeError: the records do not describe a graph that the IR allows.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for record in records:
        op, name = record["op"], record["name"]
        if op not in _OPS or not isinstance(name, str) or name in nodes:
            raise ValueError(f"node {name!r} of kind {op!r} is not allowed here")
        decode = _Decoder(nodes)
        target = find_target(record["target"]) if op == "call_function" else str(record["target"])
        args = tuple(decode(arg) for arg in record.get("args", ()))
        kwargs = {str(key): decode(arg) for key, arg in record.get("kwargs", {}).items()}
        # A module's source is written from these names and then run.
        for written in (*kwargs, *([target] if op == "placeholder" else ())):
            if not written.isidentifier():
                raise ValueError(f"{written!r} cannot be the name of an input or an argument")
        node = graph.create_node(op, target, args, kwargs, name)
        if node.name != name:
            raise ValueError(f"{name!r} cannot be the name of a node")
        node.meta["layer"] = str(record.get("layer", ""))
        nodes[name] = node
    return graph


def _encode_node(node: fx.Node) -> dict[str, Any]:
    try:
        target = target_name(node.target) if node.op == "call_function" else str(node.target)
        record: dict[str, Any] = {"name": node.name, "op": node.op, "target": target}
        if node.args:
            record["args"] = [encode(arg) for arg in node.args]
        if node.kwargs:
            record["kwargs"] = {key: encode(arg) for key, arg in node.kwargs.items()}
    except ValueError as error:
        raise ValueError(f"{node.name} ({node.target}): {error}") from None
    if node.meta.get("layer"):
        record["layer"] = node.meta["layer"]
    return record


def encode(value: Any) -> Any:
    """An argument as JSON; what JSON has no word for becomes an object with one key, the tag."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(value.start), encode(value.stop), encode(value.step)]}
    for kind, tag in _TAGS.items():
        if isinstance(value, kind):
            text = value.name if isinstance(value, fx.Node) else str(value).removeprefix("torch.")
            return {tag: text}
    raise ValueError(f"an argument of type {type(value).__name__} cannot be stored")


_TAGS: dict[type, str] = {
    fx.Node: "node",
    torch.dtype: "dtype",
    torch.device: "device",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}


class _Decoder:
    def __init__(self, nodes: Mapping[str, fx.Node]) -> None:
        self._readers: dict[str, Callable[[Any], Any]] = {
            "node": nodes.__getitem__,
            "dtype": _DTYPES.__getitem__,
            "device": torch.device,
            "layout": _LAYOUTS.__getitem__,
            "memory_format": _MEMORY_FORMATS.__getitem__,
            "float": float,
            "tuple": lambda items: tuple(self(item) for item in items),
            "dict": lambda pairs: {self(key): self(item) for key, item in pairs},
            "slice": lambda parts: slice(*(self(part) for part in parts)),
        }

    def __call__(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self(item) for item in data]
        if not isinstance(data, dict):
            return data
        ((tag, content),) = data.items()
        return self._readers[tag](content)
