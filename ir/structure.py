"""The nesting of a model's output, kept as data so that an artifact needs no pickle to rebuild it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class NamedOutputs(OrderedDict[str, Any]):
    """Stands for a model's output class where that class is not importable; fields by name or by index."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


@dataclass(frozen=True)
class Structure:
    """A tree: ``tensor``, ``none``, ``list``, ``tuple``, ``dict`` or ``object`` (a mapping-like output class).

    ``keys`` holds the names of a dict's or object's children and ``type_name`` the object's ``module:class``.
    """

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[str, ...] = ()
    type_name: str = ""

    @staticmethod
    def of(value: Any) -> Structure:
        """The structure of ``value``.  Raises TypeError for a leaf that is no tensor and not None."""
        if isinstance(value, torch.Tensor):
            return Structure("tensor")
        if value is None:
            return Structure("none")
        if isinstance(value, dict | OrderedDict):
            items = [(str(k), Structure.of(v)) for k, v in value.items() if v is not None]
            keys, children = tuple(k for k, _ in items), tuple(v for _, v in items)
            if type(value) in (dict, OrderedDict):
                return Structure("dict", children, keys)
            return Structure("object", children, keys, f"{type(value).__module__}:{type(value).__qualname__}")
        if isinstance(value, list | tuple):
            children = tuple(Structure.of(v) for v in value)
            return Structure("list" if isinstance(value, list) else "tuple", children)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            inner = Structure.of(fields)
            type_name = f"{type(value).__module__}:{type(value).__qualname__}"
            return Structure("object", inner.children, inner.keys, type_name)
        raise TypeError(f"an output of type {type(value).__name__} is neither a tensor nor a nest of tensors")

    @staticmethod
    def flatten(value: Any) -> list[torch.Tensor]:
        """Tensors of ``value`` in the order in which :meth:`pack` takes them."""
        if isinstance(value, torch.Tensor):
            return [value]
        if value is None:
            return []
        if dataclasses.is_dataclass(value) and not isinstance(value, dict):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        children: Sequence[Any] = list(value.values()) if isinstance(value, dict) else list(value)
        return [leaf for child in children for leaf in Structure.flatten(child)]

    def names(self, prefix: str = "") -> list[str]:
        """A name for every tensor leaf, from field names and positions: ``logits``, ``hidden_states.0``."""
        if self.kind == "tensor":
            return [prefix or "output"]
        labels = self.keys or tuple(str(i) for i in range(len(self.children)))
        if not self.keys and not prefix:
            labels = (
                tuple(f"output_{i}" for i in range(len(self.children)))
                if len(self.children) > 1
                else ("output",)
            )
        return [
            name
            for label, child in zip(labels, self.children, strict=True)
            for name in child.names(f"{prefix}.{label}" if prefix else label)
        ]

    def pack(self, leaves: Sequence[Any]) -> Any:
        """Rebuild the value from its tensors."""
        return self._pack(iter(leaves))

    def _pack(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "tensor":
            return next(leaves)
        if self.kind == "none":
            return None
        children = [child._pack(leaves) for child in self.children]
        if self.kind == "list":
            return children
        if self.kind == "tuple":
            return tuple(children)
        fields = dict(zip(self.keys, children, strict=True))
        return fields if self.kind == "dict" else self._object(fields)

    def _object(self, fields: dict[str, Any]) -> Any:
        # A class named by a file is only used when the program that loads the file has it already, or when it is
        # one of transformers' own: a saved artifact must never decide what gets imported.
        module_name, _, class_name = self.type_name.partition(":")
        module = sys.modules.get(module_name)
        if module is None and module_name.startswith("transformers."):
            try:
                module = importlib.import_module(module_name)
            except ImportError:
                module = None
        kind = getattr(module, class_name, None) if module else None
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, dict)):
            return kind(**fields)
        return NamedOutputs(fields)

    def to_json(self) -> Any:
        data: dict[str, Any] = {"kind": self.kind}
        if self.children:
            data["children"] = [child.to_json() for child in self.children]
        if self.keys:
            data["keys"] = list(self.keys)
        if self.type_name:
            data["type"] = self.type_name
        return data

    @staticmethod
    def from_json(data: Any) -> Structure:
        children = tuple(Structure.from_json(child) for child in data.get("children", ()))
        return Structure(data["kind"], children, tuple(data.get("keys", ())), data.get("type", ""))
