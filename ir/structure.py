"""The nesting of a model's output, kept as data so that an artifact needs no pickle to rebuild it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


_KINDS = ("tensor", "none", "list", "tuple", "namedtuple", "dict", "object")


@dataclass(frozen=True)
class Structure:
    """A tree: ``tensor``, ``none``, ``list``, ``tuple``, ``namedtuple``, ``dict`` or ``object`` (another class).

    ``keys`` holds the names of the children of a dict, an object or a named tuple (a dict's may be integers) and
    ``type_name`` the ``module:class`` of an object or named tuple.  ``cls`` is that class where this was read off a
    value; what is read from a file has the name only.
    """

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[Any, ...] = ()
    type_name: str = ""
    cls: type | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(value: Any, place: str = "output") -> Structure:
        """The structure of ``value``, which messages call ``place``.

        Raises:
            TypeError: a leaf is no tensor and not None, or a container cannot be rebuilt from its parts.
        """
        if isinstance(value, torch.Tensor):
            return Structure("tensor")
        if value is None:
            return Structure("none")
        parts = _parts(value)
        if parts is None:
            raise TypeError(
                f"{place} is of type {type(value).__name__}, neither a tensor nor a nest of tensors"
            )
        kind, keys, values = parts
        named = kind in ("namedtuple", "object")
        for key in keys:
            if type(key) is not str and (kind != "dict" or type(key) is not int):
                raise TypeError(
                    f"{place} has a key of type {type(key).__name__} ({key!r}), which cannot be stored"
                )
        places = [f".{key}" if named else f"[{key!r}]" for key in keys or range(len(values))]
        children = tuple(
            Structure.of(child, place + where) for child, where in zip(values, places, strict=True)
        )
        if not named:
            return Structure(kind, children, keys)
        cls = type(value)
        found = Structure(kind, children, keys, f"{cls.__module__}:{cls.__qualname__}", cls)
        _check_rebuilds(found, value, place)
        return found

    @staticmethod
    def flatten(value: Any) -> list[torch.Tensor]:
        """Tensors of ``value`` in the order in which :meth:`pack` takes them."""
        if isinstance(value, torch.Tensor):
            return [value]
        _, _, children = _parts(value) or ("none", (), ())
        return [leaf for child in children for leaf in Structure.flatten(child)]

    def names(self, prefix: str = "") -> list[str]:
        """A name for every tensor leaf, from field names and positions: ``logits``, ``hidden_states.0``."""
        if self.kind == "tensor":
            return [prefix or "output"]
        labels = tuple(map(str, self.keys)) or tuple(str(i) for i in range(len(self.children)))
        if not self.keys and not prefix:
            labels = ("output",) if len(labels) == 1 else tuple(f"output_{label}" for label in labels)
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
        if self.kind == "namedtuple":
            return self._named_tuple(children)
        fields = dict(zip(self.keys, children, strict=True))
        return fields if self.kind == "dict" else self._object(fields)

    def _named_tuple(self, children: list[Any]) -> Any:
        cls = self._class()
        if cls is not None and issubclass(cls, tuple) and _field_names(cls) == self.keys:
            # PyTorch's own (what max over a dim returns) take all fields at once.
            return getattr(cls, "_make", cls)(children)
        return namedtuple("Outputs", self.keys)(*children)

    def _object(self, fields: dict[str, Any]) -> Any:
        cls = self._class()
        if cls is not None and issubclass(cls, dict):
            return cls(**fields)
        if cls is None or not dataclasses.is_dataclass(cls) or _field_names(cls) != self.keys:
            return NamedOutputs(fields)
        # As a copy is made: what __post_init__ does to the fields has been done by the model.
        result = object.__new__(cls)
        for name, value in fields.items():
            object.__setattr__(result, name, value)
        return result

    def _class(self) -> type | None:
        """The class of an object or named tuple, None where this program does not have it."""
        if self.cls is not None:
            return self.cls
        # A class named by a file is only used when the program that loads the file has it already, or when it is
        # one of transformers' own: a saved artifact must never decide what gets imported.
        module_name, _, class_name = self.type_name.partition(":")
        found: Any = sys.modules.get(module_name)
        if found is None and module_name.startswith("transformers."):
            try:
                found = importlib.import_module(module_name)
            except ImportError:
                return None
        for part in class_name.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) else None

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
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: ``data`` describes nothing that :meth:`pack` could follow.
        """
        children = tuple(Structure.from_json(child) for child in data.get("children", ()))
        found = Structure(data["kind"], children, tuple(data.get("keys", ())), data.get("type", ""))
        if found.kind not in _KINDS:
            raise ValueError(f"{found.kind!r} is no kind of output")
        named = found.kind in ("namedtuple", "dict", "object")
        if len(found.keys) != (len(children) if named else 0):
            raise ValueError("an output's names are not as many as its parts")
        allowed = str | int if found.kind == "dict" else str
        if not all(isinstance(key, allowed) for key in found.keys) or not isinstance(found.type_name, str):
            raise ValueError("an output's name is no text")
        if found.kind == "namedtuple":
            namedtuple("Outputs", found.keys)  # It checks the names before it makes code of them.
        return found


def _parts(value: Any) -> tuple[str, tuple[Any, ...], Sequence[Any]] | None:
    """Kind, keys and children of a container; None for all that is none, or no kind that can be rebuilt."""
    if isinstance(value, dict):
        kind = "dict" if type(value) is dict else "object"
        return kind, tuple(value.keys()), list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = _field_names(type(value))
        return "object", names, [getattr(value, name) for name in names]
    if type(value) in (list, tuple):
        return type(value).__name__, (), value
    if isinstance(value, tuple) and len(_field_names(type(value))) == len(value):
        return "namedtuple", _field_names(type(value)), value
    return None


def _field_names(cls: Any) -> tuple[str, ...]:
    """The fields of a dataclass or of a named tuple's class, PyTorch's own among them."""
    if dataclasses.is_dataclass(cls):
        return tuple(f.name for f in dataclasses.fields(cls))
    return tuple(getattr(cls, "_fields", getattr(cls, "__match_args__", ())))


def _check_rebuilds(structure: Structure, value: Any, place: str) -> None:
    """Raise TypeError unless ``structure`` packs the tensors of ``value`` into what ``value`` is."""
    told = f"{place} is of type {type(value).__name__}, which "
    try:
        rebuilt = structure.pack(Structure.flatten(value))
        _, keys, _ = _parts(rebuilt) or ("", (), ())
    except Exception as error:
        raise TypeError(f"{told}cannot be made from its parts ({error})") from error
    if type(rebuilt) is not type(value) or keys != structure.keys:
        raise TypeError(f"{told}becomes another when it is made from its parts")
    more = getattr(value, "__dict__", {}).keys() - getattr(rebuilt, "__dict__", {}).keys()
    if more:
        raise TypeError(f"{told}holds {sorted(more)[0]!r} beside its fields")
