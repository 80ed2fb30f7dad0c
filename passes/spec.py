"""Spec strings such as ``token-drop:method=zero-tprune,keep=0.7,layers=3-9``, and the options they set.

Options are the dataclass fields of the pass; those that the pass does not have go to the method in its slot.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tersor.ir.errors import SpecError, TersorError

from .contract import Method, Pass
from .option_types import type_text, value_of, value_text
from .registry import find_methods, find_passes

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Option:
    """One option of a pass or method, as help and documentation print it.

    Attributes:
        default: None if it is required, empty if it may be left out and has none.
    """

    name: str
    type: str
    default: str | None
    help: str


@dataclass(frozen=True)
class Spec:
    """A parsed spec string: a name and options as written, in order.  ``str`` gives a string that parses back."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def parse(text: str) -> Spec:
        """Split ``name:key=value,key=value``; whether the name and the keys exist is found out by :meth:`build`.

        Raises:
            SpecError: the string does not have that form.
        """
        name, colon, rest = text.partition(":")
        name = name.strip()
        if not _NAME.fullmatch(name):
            raise SpecError(f"{_quote(text)}: a pass is written name:key=value,key=value")
        options: dict[str, str] = {}
        for part in rest.split(",") if colon else ():
            key, equals, value = (piece.strip() for piece in part.partition("="))
            key = key.replace("-", "_")
            if not equals or not _NAME.fullmatch(key) or not value or not value.isprintable():
                raise SpecError(f"{_quote(text)}: {_quote(part)} is not of the form key=value")
            if key in options:
                raise SpecError(f"{_quote(text)}: {key!r} is given twice")
            options[key] = value
        return Spec(name, tuple(options.items()))

    @staticmethod
    def of(instance: Pass) -> Spec:
        """The spec of a pass: every option that differs from its default.

        Raises:
            SpecError: a value, such as a text with a comma, cannot be written in a spec string.
        """
        options: dict[str, str] = {}
        for field in _fields(type(instance)):
            value, default = getattr(instance, field.name), _default(field)
            if not isinstance(value, Method):
                options |= _differing({field.name: value}, {field.name: default})
                continue
            start = default if type(value) is type(default) else None
            if start is None:
                options[field.name] = value.name
            values = {f.name: getattr(value, f.name) for f in _fields(type(value))}
            defaults = {f.name: getattr(start, f.name, _default(f)) for f in _fields(type(value))}
            options |= _differing(values, defaults)
        return Spec(instance.name, tuple(options.items()))

    def __str__(self) -> str:
        return (
            self.name + ":" * bool(self.options) + ",".join(f"{key}={value}" for key, value in self.options)
        )

    def build(self) -> Pass:
        """The pass with its options.

        Raises:
            SpecError: a name or value does not exist; the message names the nearest one that does.
        """
        passes = find_passes()
        if self.name not in passes:
            raise SpecError(f"there is no pass {self.name!r}{nearest(self.name, passes)}")
        return _build(passes[self.name], dict(self.options))


def parse_spec(spec: str | Pass) -> Pass:
    """A pass from its spec string; a pass is returned as it is.

    Raises:
        SpecError: one line that says what is wrong with the string, and the nearest right name.
    """
    return spec if isinstance(spec, Pass) else Spec.parse(spec).build()


def options_of(kind: type[Pass] | type[Method]) -> tuple[Option, ...]:
    """The options of a pass or method, in the order of its fields."""
    hints = typing.get_type_hints(kind)
    options = []
    for field in _fields(kind):
        default = _default(field)
        if isinstance(default, Method):
            default_text: str | None = default.name
        else:
            # No text is what an option is that was left out: no spec says it, and none has to.
            default_text = default if default == "" else None
            if default_text is None and default is not dataclasses.MISSING:
                default_text = value_text(default)
        base = slot_of(hints[field.name])
        kind_text = f"one of {', '.join(find_methods(base))}" if base else type_text(hints[field.name])
        options.append(Option(field.name, kind_text, default_text, field.metadata.get("help", "")))
    return tuple(options)


def slot_of(hint: Any) -> type[Method] | None:
    """The family's method class when a field with this type is a slot, else None."""
    candidates = typing.get_args(hint) or (hint,)
    return next((k for k in candidates if isinstance(k, type) and issubclass(k, Method)), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or, where nothing is near, what there is to choose from."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}" if names else "; there is none"


def _build(kind: type[Pass], options: dict[str, str]) -> Pass:
    hints = typing.get_type_hints(kind)
    own = {field.name: field for field in _fields(kind)}
    slots = {name: base for name in own if (base := slot_of(hints[name])) is not None}
    values = {
        name: _read(kind.name, name, hints[name], options.pop(name))
        for name in own
        if name in options and name not in slots
    }
    methods = {name: _method(kind, own[name], base, options.pop(name, None)) for name, base in slots.items()}
    given: dict[str, dict[str, Any]] = {name: {} for name in slots}
    for key, text in options.items():
        takers = [name for name, (method, _) in methods.items() if key in _field_names(method)]
        if len(takers) != 1:
            raise SpecError(_why_unknown(kind, key, own, methods, takers))
        method = methods[takers[0]][0]
        given[takers[0]][key] = _read(method.name, key, typing.get_type_hints(method)[key], text)
    for name, (method, default) in methods.items():
        values[name] = _construct(method, {**default, **given[name]})
    return _construct(kind, values)  # type: ignore[no-any-return]


def _method(
    kind: type[Pass], field: dataclasses.Field[Any], base: type[Method], name: str | None
) -> tuple[type[Method], dict[str, Any]]:
    """The method class for a slot, and the option values it starts from."""
    default = _default(field)
    if name is None:
        if not isinstance(default, Method):
            raise SpecError(f"{kind.name} needs {field.name}=, one of {', '.join(find_methods(base))}")
        return type(default), {f.name: getattr(default, f.name) for f in _fields(type(default))}
    methods = find_methods(base)
    if name not in methods:
        raise SpecError(f"{kind.name} has no {field.name} {name!r}{nearest(name, methods)}")
    return methods[name], {}


def _why_unknown(
    kind: type[Pass],
    key: str,
    own: Mapping[str, Any],
    methods: Mapping[str, tuple[type[Method], Any]],
    takers: list[str],
) -> str:
    if takers:
        names = " and ".join(methods[name][0].name for name in takers)
        return f"{kind.name}: both {names} have an option {key!r}; build the pass in Python to say which is meant"
    with_methods = "".join(f" with {slot}={method.name}" for slot, (method, _) in methods.items())
    known = [*own, *(name for method, _ in methods.values() for name in _field_names(method))]
    return f"{kind.name}{with_methods} has no option {key!r}{nearest(key, known)}"


def _read(owner: str, name: str, hint: Any, text: str) -> Any:
    try:
        return value_of(hint, text)
    except ValueError as error:
        raise SpecError(f"{owner}: {name}={_quote(text)} is not {error}") from None


def _construct(kind: type[Any], values: dict[str, Any]) -> Any:
    for field in _fields(kind):
        clash = [
            name for name in field.metadata.get("excludes", ()) if name in values and field.name in values
        ]
        if clash:
            raise SpecError(
                f"{kind.name}: {field.name}= and {clash[0]}= say the same thing; give one of them"
            )
    missing = [f.name for f in _fields(kind) if f.name not in values and _default(f) is dataclasses.MISSING]
    if missing:
        raise SpecError(f"{kind.name} needs {', '.join(name + '=' for name in missing)}")
    try:
        return kind(**values)
    except (ValueError, TersorError) as error:
        raise SpecError(f"{kind.name}: {' '.join(str(error).split())}") from error


def _differing(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    try:
        return {name: value_text(value) for name, value in values.items() if value != defaults[name]}
    except ValueError as error:
        raise SpecError(str(error)) from error


def _fields(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    return (
        [field for field in dataclasses.fields(kind) if field.init] if dataclasses.is_dataclass(kind) else []
    )


def _field_names(kind: type[Any]) -> list[str]:
    return [field.name for field in _fields(kind)]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
