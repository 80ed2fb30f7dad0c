"""Spec strings: every one either gives a pass or one line that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tersor.ir.errors import SpecError
from tersor.ir.program import Program
from tersor.passes.contract import Method, Pass, Promise, Refusal, Site
from tersor.passes.registry import find_methods, find_passes, registered, unregistered
from tersor.passes.spec import Spec, options_of, parse_spec


class Colour(Enum):
    RED = "red"
    DARK_BLUE = "dark-blue"


class Paint(Method):
    """Base of the methods that fill the test pass's slot."""


@dataclass(frozen=True)
class Brush(Paint):
    """Strokes."""

    name: ClassVar[str] = "brush"
    promise: ClassVar[Promise | None] = Promise.EXACT
    bristles: int = field(default=20, metadata={"help": "how many"})


@dataclass(frozen=True)
class Spray(Paint):
    """Dots."""

    name: ClassVar[str] = "spray"
    pressure: float = 1.5
    colour: str = "any"


@unregistered
@dataclass(frozen=True)
class PaintPass(Pass):
    """A pass that only tests know."""

    name: ClassVar[str] = "test-paint"
    family: ClassVar[str] = "test"
    promise: ClassVar[Promise] = Promise.APPROXIMATE

    method: Paint = field(default=Brush(bristles=30), metadata={"help": "how paint is put on"})
    colour: Colour = Colour.RED
    coats: int = 1
    share: float | tuple[float, ...] = 0.5
    layers: tuple[int, ...] = ()
    finish: Literal["matt", "gloss"] = "matt"
    limit: int | None = None
    dry: bool = True
    label: str = "none given"

    def __post_init__(self) -> None:
        if self.coats < 1:
            raise ValueError(f"coats={self.coats} is\nbelow 1")

    def legality(self, program: Program) -> list[Site] | Refusal:
        return []

    def rewrite(self, program: Program, sites: list[Site]) -> Program:
        return program.edit()


@dataclass(frozen=True)
class NeedsPass(PaintPass):
    """A pass with an option that has no default."""

    name: ClassVar[str] = "test-needs"
    depth: int = field(kw_only=True, metadata={"help": "how deep"})


@pytest.fixture(autouse=True, scope="module")
def _found_by_name() -> Iterator[None]:
    with registered(PaintPass):
        yield


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test-paint", PaintPass()),
        (" test-paint : coats = 3 ", PaintPass(coats=3)),
        ("test-paint:method=spray,pressure=2e-1,coats=2", PaintPass(method=Spray(pressure=0.2), coats=2)),
        ("test-paint:pressure=2.5,method=spray", PaintPass(method=Spray(pressure=2.5))),
        ("test-paint:bristles=7", PaintPass(method=Brush(bristles=7))),
        ("test-paint:method=brush", PaintPass(method=Brush())),
        ("test-paint:colour=dark-blue,finish=gloss", PaintPass(colour=Colour.DARK_BLUE, finish="gloss")),
        ("test-paint:layers=3-5+8,share=0.9+0.8", PaintPass(layers=(3, 4, 5, 8), share=(0.9, 0.8))),
        ("test-paint:layers=2,share=1", PaintPass(layers=(2,), share=1.0)),
        ("test-paint:layers=none,limit=none", PaintPass()),
        ("test-paint:limit=-4,dry=off,label=a b=c", PaintPass(limit=-4, dry=False, label="a b=c")),
    ],
)
def test_options_are_read_by_their_types(text: str, expected: PaintPass) -> None:
    assert parse_spec(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test-pant", "there is no pass 'test-pant'; did you mean 'test-paint'?"),
        (
            "test-paint:coat=3",
            "test-paint with method=brush has no option 'coat'; did you mean 'coats'?",
        ),
        ("test-paint:method=spary", "test-paint has no method 'spary'; did you mean 'spray'?"),
        (
            "test-paint:pressure=1",
            "test-paint with method=brush has no option 'pressure'",
        ),
        ("test-paint:coats=two", "test-paint: coats='two' is not a whole number"),
        ("test-paint:coats=0", "test-paint: coats=0 is below 1"),
        ("test-paint:finish=shiny", "test-paint: finish='shiny' is not one of matt, gloss"),
        ("test-paint:colour=", "'test-paint:colour=': 'colour=' is not of the form key=value"),
        ("test-paint:coats=1,coats=2", "'test-paint:coats=1,coats=2': 'coats' is given twice"),
        ("test-paint:layers=5-3", "test-paint: layers='5-3' is not a list such as 3-9 or 3+5+7"),
        ("test-paint:share=0.9+x", "test-paint: share='0.9+x' is not a number"),
        ("test-paint:share=nan", "test-paint: share='nan' is not a number"),
        ("test-paint:dry=maybe", "test-paint: dry='maybe' is not true or false"),
        ("test-needs", "test-needs needs depth="),
        ("", "'': a pass is written name:key=value,key=value"),
    ],
)
def test_what_is_wrong_is_named_with_the_nearest_right_name(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert str(caught.value).startswith(message)


numbers = st.floats(allow_nan=False, allow_infinity=False)
paints = st.builds(Brush, st.integers(-9, 9)) | st.builds(Spray, numbers, st.sampled_from(["a", "b-c"]))
layer_lists = st.lists(st.integers(-2, 12), max_size=6).map(tuple)
labels = st.text(st.characters(categories=["L", "N", "P"], exclude_characters=","), min_size=1, max_size=8)


@given(
    st.builds(
        PaintPass,
        paints.filter(lambda method: not (isinstance(method, Spray) and method.colour != "any")),
        st.sampled_from(Colour),
        st.integers(1, 99),
        numbers | st.lists(numbers, min_size=2, max_size=3).map(tuple),
        layer_lists,
        st.sampled_from(["matt", "gloss"]),
        st.none() | st.integers(-(10**9), 10**9),
        st.booleans(),
        labels,
    )
)
def test_a_pass_and_its_spec_string_are_the_same_thing(instance: PaintPass) -> None:
    spec = Spec.of(instance)
    assert Spec.parse(str(spec)) == spec
    assert parse_spec(str(spec)) == instance


names = st.sampled_from(
    [
        *find_passes(),
        "test-paint",
        "",
        "x",
        "cleanup",
        *(f"{c}={v}" for c in ("keep", "layers", "method") for v in "a17-"),
    ]
)
pieces = st.lists(
    names | st.sampled_from([":", ",", "=", "+", "-", "0.7", "9" * 400, "1e999", "\n"]), max_size=9
)


strings = st.text() | pieces.map("".join) | pieces.map("".join).map("token-drop:".__add__)


def parses_or_gives_one_line(text: str) -> None:
    try:
        instance = parse_spec(text)
    except SpecError as error:
        message = str(error)
    else:
        message = str(Spec.of(instance))
    assert message
    assert message.isprintable()


@settings(max_examples=500, deadline=None)
@given(strings)
@example("token-drop:layers=0-999999999999999")
@example("token-drop:keep=" + "1+" * 3000)
@example("token-drop:layers=" + "9" * 5000)
def test_every_string_either_parses_or_gives_one_line(text: str) -> None:
    parses_or_gives_one_line(text)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(strings)
def test_ten_thousand_strings_either_parse_or_give_one_line(text: str) -> None:
    parses_or_gives_one_line(text)


def test_help_comes_from_the_fields() -> None:
    options = {option.name: option for option in options_of(PaintPass)}
    assert options["method"].type == "one of brush, spray"
    assert (options["method"].default, options["method"].help) == ("brush", "how paint is put on")
    assert options["limit"].type == "a whole number, or none"
    assert options["layers"].default == "none"
    assert {option.name: option.default for option in options_of(NeedsPass)}["depth"] is None
    assert options_of(Brush)[0].help == "how many"


def test_every_pass_and_method_here_documents_itself() -> None:
    for kind in find_passes().values():
        assert kind.__doc__
        if kind.__module__.startswith("tersor."):
            assert all(option.help for option in options_of(kind)), kind


def test_methods_are_found_below_their_base() -> None:
    assert find_methods(Paint) == {"brush": Brush, "spray": Spray}


def test_a_methods_promise_stands_in_for_the_passes() -> None:
    assert PaintPass(method=Brush()).promised is Promise.EXACT
    assert PaintPass(method=Spray()).promised is Promise.APPROXIMATE


def test_two_passes_of_one_name_are_an_error() -> None:
    twin = dataclass(frozen=True)(type("Twin", (PaintPass,), {"name": "test-paint", "__annotations__": {}}))
    try:
        with pytest.raises(SpecError, match="are both called 'test-paint': rename one"):
            find_passes()
    finally:
        twin.name = "test-twin"
