"""Data read from a JSON file, held against the shape that its reader relies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any


@dataclass(frozen=True)
class Each:
    """An object whose values, whatever their names, all have one shape."""

    shape: Any


def check_shape(data: Any, shape: Any, where: str = "it") -> None:
    """Raise ValueError, naming the place, unless ``data`` has ``shape``.

    Args:
        shape: a type or a union of types; a mapping, for an object with at least these members; a list of one
            shape, for a list of any length; or :class:`Each`.
        where: what the message calls ``data``.
    """
    if isinstance(shape, Mapping):
        _check_type(data, dict, where)
        for name, inner in shape.items():
            if name not in data:
                raise ValueError(f"{where} has no {name!r}")
            check_shape(data[name], inner, _member(where, name))
    elif isinstance(shape, Each):
        _check_type(data, dict, where)
        for name, value in data.items():
            check_shape(value, shape.shape, _member(where, name))
    elif isinstance(shape, list):
        _check_type(data, list, where)
        for number, value in enumerate(data):
            check_shape(value, shape[0], f"{where}[{number}]")
    else:
        _check_type(data, shape, where)


def _check_type(data: Any, kind: type | UnionType, where: str) -> None:
    # JSON tells true from 1, Python's isinstance does not.
    allowed = getattr(kind, "__args__", (kind,))
    if (isinstance(data, bool) and bool not in allowed) or not isinstance(data, kind):
        raise ValueError(f"{where} is {_text(data)}, not {' or '.join(_KINDS[k] for k in allowed)}")


def _member(where: str, name: str) -> str:
    return name if where == "it" else f"{where}.{name}"


def _text(data: Any) -> str:
    return _KINDS.get(type(data), type(data).__name__)


_KINDS: dict[Any, str] = {
    dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number",
    bool: "true or false", type(None): "null",
}  # fmt: skip
