"""How option values are written: from text to the type a dataclass field declares, and back."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Sequence
from enum import Enum
from typing import Any

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_RANGE = re.compile(r"([0-9]{1,15})-([0-9]{1,15})")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_LONGEST_RANGE = 10_000


def value_of(hint: Any, text: str) -> Any:
    """``text`` as a value of type ``hint``: int, float, bool, str, an Enum, a Literal, ``tuple[int, ...]`` or a union.

    Items of a tuple are joined by ``+``, ``none`` is the empty one; whole numbers may be ranges, as in ``3-5+8``.

    Raises:
        ValueError: the text is no such value; the message says what is expected.
    """
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if text.lower() == "none":
            return ()
        return tuple(item for part in text.split("+") for item in _items(hint, choices[0], part))
    if origin in (typing.Union, types.UnionType):
        return _first_reading(hint, choices, text)
    if origin is typing.Literal:
        named = {value_text(choice): choice for choice in choices}
    elif isinstance(hint, type) and issubclass(hint, Enum):
        named = {str(member.value): member for member in hint}
    elif hint is bool:
        named = {**_BOOLEANS, "1": True, "0": False}
        text = text.lower()
    elif hint is str:
        return text
    elif hint is int and _INTEGER.fullmatch(text):
        return int(text)
    elif hint is float and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    else:
        named = {}
    # True and False, as Python writes them, too.
    read = text if text in named else text.lower()
    if read not in named:
        raise ValueError(type_text(hint))
    return named[read]


def value_text(value: Any) -> str:
    """A value as :func:`value_of` reads it.

    Raises:
        ValueError: the value cannot be written in a spec string.
    """
    if isinstance(value, tuple):
        if not value:
            return "none"
        return "+".join(_range_texts(value) if all(type(v) is int for v in value) else map(value_text, value))
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    # A plus joins the items of a list, so an exponent does without.
    text = repr(value).replace("e+", "e") if isinstance(value, float) else str(value)
    if not text.isprintable() or "," in text or text != text.strip() or not text:
        raise ValueError(f"{text!r} cannot be written in a spec")
    return text


def type_text(hint: Any) -> str:
    """What a value of this type is, as an error message and the help say it."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return (
            "a list such as 3-9 or 3+5+7"
            if choices[0] is int
            else f"{type_text(choices[0])}, or several joined by +"
        )
    if origin in (typing.Union, types.UnionType):
        return ", or ".join("none" if choice is types.NoneType else type_text(choice) for choice in choices)
    if origin is typing.Literal:
        return f"one of {', '.join(value_text(choice) for choice in choices)}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(str(member.value) for member in hint)}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(hint, str(hint))


def _first_reading(hint: Any, choices: Sequence[Any], text: str) -> Any:
    if types.NoneType in choices and text.lower() == "none":
        return None
    for choice in choices:
        try:
            return value_of(choice, text)
        except ValueError:
            continue
    raise ValueError(type_text(hint))


def _items(hint: Any, item: Any, text: str) -> Sequence[Any]:
    span = _RANGE.fullmatch(text) if item is int else None
    if span is None:
        try:
            return (value_of(item, text),)
        except ValueError:
            raise ValueError(type_text(hint)) from None
    first, last = int(span[1]), int(span[2])
    if not first <= last:
        raise ValueError(f"{type_text(hint)} (a range goes upwards)")
    if last >= first + _LONGEST_RANGE:
        raise ValueError(f"{type_text(hint)} (a range holds {_LONGEST_RANGE} numbers at most)")
    return range(first, last + 1)


def _range_texts(values: Sequence[int]) -> list[str]:
    texts: list[str] = []
    start = 0
    for i in range(1, len(values) + 1):
        if i < len(values) and values[i] == values[i - 1] + 1 and values[start] >= 0:
            continue
        run = values[start:i]
        texts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(v) for v in run]
        start = i
    return texts
