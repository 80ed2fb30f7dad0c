"""The JSON of a ``.pt2`` archive, held to the schema of the installed PyTorch and rid of all else."""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from . import strings

# What each string says.  A string without a line here is refused: a schema to come may hold strings that run.
_STRINGS: dict[str, strings.Check] = {
    "name": strings.identifier,
    "as_name": strings.identifier,
    "forward_arg_names": strings.identifier,
    "field_names": strings.identifier,
    "verifiers": strings.identifier,
    "type": strings.identifier,
    "parameter_name": strings.dotted,
    "buffer_name": strings.dotted,
    "tensor_constant_name": strings.dotted,
    "user_input_name": strings.dotted,
    "fqn": strings.dotted,
    "path_name": strings.identifier,
    "target": strings.operator,
    "as_operator": strings.operator,
    "expr_str": strings.expression,
    "guards_code": strings.guard,
    "in_spec": strings.call_structure,
    "out_spec": strings.structure,
    "as_string": strings.anything,
    "as_strings": strings.anything,
    "torch_version": strings.anything,
    "metadata": strings.anything,
}
_KEYS: dict[str, strings.Check] = {
    "tensor_values": strings.identifier,
    "sym_int_values": strings.identifier,
    "sym_bool_values": strings.identifier,
    "sym_float_values": strings.identifier,
    "opset_version": strings.identifier,
    "range_constraints": strings.size,
    "treespec_namedtuple_fields": strings.dotted,
    "as_string_to_argument": strings.plain,
    "config": strings.dotted,
    "metadata": strings.identifier,
}
# The rest only says where a node came from, some of it by importing.
_METADATA = {"stack_trace", "nn_module_stack"}


def checked_program(data: bytes) -> Any:
    """``models/model.json``, of known fields only.

    Raises:
        ValueError: a value is of another kind than the schema's, or a string is none that may be handed on.
    """
    return _Reader().read(schema.ExportedProgram, strings.read_json(data), "program")


def checked_payloads(data: bytes) -> Any:
    """The table of tensors in a ``*_config.json``, of known fields only; raises as :func:`checked_program`."""
    return _Reader().read(schema.PayloadConfig, strings.read_json(data), "payloads")


class _Reader:
    def __init__(self) -> None:
        self.hints: dict[type, dict[str, Any]] = {}

    def read(self, kind: Any, value: Any, field: str, in_source: bool = False) -> Any:
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            wanted = next(part for part in inner if part is not type(None))
            return None if value is None else self.read(wanted, value, field, in_source)
        if origin is list:
            _expect(value, list, field)
            return [self.read(inner[0], part, field, in_source) for part in value]
        if origin is dict:
            return self._mapping(inner[1], value, field, in_source)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            return self._record(kind, value, field, in_source)
        return _scalar(kind, value, field, in_source)

    def _mapping(self, kind: Any, value: Any, field: str, in_source: bool) -> dict[str, Any]:
        _expect(value, dict, field)
        if value and field not in _KEYS:
            raise ValueError(f"it fills {field}, which Tersor does not read")
        if field == "metadata":
            value = {key: text for key, text in value.items() if key in _METADATA}
        return {_KEYS[field](key): self.read(kind, part, field, in_source) for key, part in value.items()}

    def _record(self, kind: type, value: Any, field: str, in_source: bool) -> dict[str, Any]:
        _expect(value, dict, field)
        if kind not in self.hints:
            self.hints[kind] = typing.get_type_hints(kind, globalns=vars(schema))
        hints = self.hints[kind]
        if issubclass(kind, _Union) and (len(value) != 1 or not value.keys() <= hints.keys()):
            raise ValueError(f"{field} is of no known kind")
        # PyTorch writes a graph's inputs that are values into the source of its input checks.
        inputs = "inputs" if kind is schema.Graph else None
        return {
            name: self.read(hint, value[name], name, in_source or name == inputs)
            for name, hint in hints.items()
            if name in value
        }


def _scalar(kind: Any, value: Any, field: str, in_source: bool) -> Any:
    if kind is str:
        _expect(value, str, field)
        if field not in _STRINGS:
            raise ValueError(f"it fills {field}, which Tersor does not read")
        return strings.plain(value) if in_source and field == "as_string" else _STRINGS[field](value)
    if kind is float and isinstance(value, str):
        return strings.number_word(value)
    if kind in (int, bool, float) or (isinstance(kind, type) and issubclass(kind, Enum)):
        _expect(value, int | float, field)
        return value
    raise ValueError(f"it fills {field}, which Tersor does not read")


def _expect(value: Any, kind: Any, field: str) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{field} is a {type(value).__name__}")
