"""The nesting of outputs: what is rebuilt from the tensors is what the model returned, also from a file."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tersor.ir.structure import NamedOutputs, Structure

T = torch.arange(3.0)
Pair = namedtuple("Pair", "first second")


class Named(NamedTuple):
    logits: Tensor
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Fields:
    logits: Tensor
    hidden: Any


@dataclass
class Doubles:
    """A class that changes its fields; what the model returns has been changed already."""

    x: Tensor
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x = self.x * 2
        self.y = self.x + 1


class Outer:
    class Inner(NamedTuple):
        x: Tensor


class Mine(dict[str, Any]):
    pass


VALUES = [
    T,
    None,
    [T],
    (None, T, None),
    {"a": T, "b": None},
    {0: T, 1: [T, (T, {})]},
    OrderedDict(b=T, a=T),
    Named(T),
    Named(T, T + 1),
    Pair(T, [T, None]),
    Outer.Inner(T),
    Fields(T, None),
    Fields(T, {"k": (T,)}),
    Doubles(T),
    Mine(a=T),
    T.reshape(1, 3).max(1),
]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return same(vars(left), vars(right)) if hasattr(left, "__dict__") else left == right


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_packed_is_what_was_flattened(value: Any) -> None:
    structure = Structure.of(value)
    loaded = Structure.from_json(json.loads(json.dumps(structure.to_json())))
    assert loaded == structure
    leaves = Structure.flatten(value)
    assert len(structure.names()) == len(leaves)
    for one in (structure, loaded):
        assert same(one.pack(leaves), value)


def test_without_its_class_an_output_keeps_its_fields() -> None:
    named, fields = Structure.of(Named(T, T + 1)), Structure.of(Fields(T, None))
    unknown = replace(named, cls=None, type_name="nowhere:Named").pack([T, T + 1])
    assert isinstance(unknown, tuple)
    logits, hidden = unknown
    assert unknown.logits is logits
    assert unknown.hidden is hidden
    unknown = replace(fields, cls=None, type_name="nowhere:Fields").pack([T])
    assert isinstance(unknown, NamedOutputs)
    assert unknown.logits is T
    assert unknown.hidden is None


def test_a_class_of_other_fields_under_the_same_name_is_not_used() -> None:
    for value, other in ((Named(T, T), "Pair"), (Fields(T, T), "Doubles")):
        found = replace(Structure.of(value), cls=None, type_name=f"{__name__}:{other}").pack([T, T])
        assert type(found).__name__ != other
        assert found.hidden is T


def test_a_class_inside_a_function_is_kept_as_long_as_the_program_runs() -> None:
    @dataclass
    class Local:
        x: Tensor

    assert type(Structure.of(Local(T)).pack([T])) is Local


@dataclass
class Remembers:
    x: Tensor

    def __post_init__(self) -> None:
        self.more = 1


class Demanding(dict[str, Any]):
    def __init__(self, one: int) -> None:
        super().__init__(x=T)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((T, 3), r"output\[1\] is of type int, neither a tensor"),
        ({"a": [T, "x"]}, r"output\['a'\]\[1\] is of type str"),
        (Named(T, 1.5), r"output\.hidden is of type float"),
        (Fields(T, {1, 2}), r"output\.hidden is of type set"),
        (T.shape, "output is of type Size"),
        (deque([T]), "output is of type deque"),
        ({(1, 2): T}, "a key of type tuple"),
        ({True: T}, "a key of type bool"),
        (defaultdict(list, {1: T}), "a key of type int"),
        (Remembers(T), "holds 'more' beside its fields"),
        (Demanding(1), "Demanding, which cannot be made from its parts"),
    ],
)
def test_what_cannot_be_rebuilt_is_named(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Structure.of(value)


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "set"},
        {"kind": "dict", "keys": ["a"]},
        {"kind": "tuple", "keys": ["a"], "children": [{"kind": "tensor"}]},
        {"kind": "namedtuple", "keys": [1], "children": [{"kind": "tensor"}]},
        {"kind": "namedtuple", "keys": ["a b"], "children": [{"kind": "tensor"}]},
        {"kind": "namedtuple", "keys": ["a", "a"], "children": [{"kind": "tensor"}, {"kind": "tensor"}]},
        {"kind": "object", "keys": ["a"], "children": [{"kind": "tensor"}], "type": 3},
    ],
)
def test_a_structure_that_cannot_be_followed_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        Structure.from_json(data)
