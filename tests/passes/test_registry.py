"""Passes and methods are found by walking the package; what tests define is found by nobody else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from tersor.ir.errors import SpecError
from tersor.passes.contract import Method
from tersor.passes.registry import (
    find_methods,
    find_passes,
    import_all,
    named_subclasses,
    registered,
    unregistered,
)
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.method import TokenMethod
from tersor.passes.tokens.random import Random


class Shape(Method):
    """Base of the methods of a slot that only this file has."""


@dataclass(frozen=True)
class Round(Shape):
    """Always there."""

    name: ClassVar[str] = "round"


@unregistered
@dataclass(frozen=True)
class Square(Shape):
    """There when asked for."""

    name: ClassVar[str] = "square"


@dataclass(frozen=True)
class Cube(Square):
    """Unregistered with its base."""

    name: ClassVar[str] = "cube"


def test_an_unregistered_class_and_its_subclasses_are_found_only_while_they_are_registered() -> None:
    assert list(find_methods(Shape)) == ["round"]
    with registered(Square):
        assert list(find_methods(Shape)) == ["cube", "round", "square"]
        with registered(Square):
            pass
        assert "square" in find_methods(Shape), "an inner registration does not end the outer one"
    assert list(find_methods(Shape)) == ["round"]


def test_what_was_registered_for_a_while_is_gone_after_an_error_too() -> None:
    with pytest.raises(KeyError), registered(Square):
        raise KeyError
    assert list(find_methods(Shape)) == ["round"]


def test_registering_what_is_always_found_does_not_hide_it_afterwards() -> None:
    with registered(Round):
        pass
    assert list(find_methods(Shape)) == ["round"]


def test_a_spec_string_reaches_a_method_only_while_it_is_registered() -> None:
    @unregistered
    @dataclass(frozen=True)
    class Coin(Random):
        """A control that only this test knows."""

        name: ClassVar[str] = "coin"

    with registered(Coin):
        assert parse_spec("token-drop:method=coin").methods["method"] == Coin()
    with pytest.raises(SpecError, match="token-drop has no method 'coin'"):
        parse_spec("token-drop:method=coin")


def test_no_test_leaves_a_pass_or_method_that_others_find() -> None:
    """Every test module of this run has been imported by now, whichever of them has run."""
    for kind in (*find_passes().values(), *find_methods(TokenMethod).values()):
        assert kind.__module__.startswith("tersor."), f"{kind.__module__}.{kind.__qualname__}"


def test_a_class_without_a_name_of_its_own_is_no_method() -> None:
    class Oval(Round):
        """Has its base's name, and so none."""

    assert named_subclasses(Shape) == {"round": Round}


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_family_of_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "typo.py").write_text("from nowhere_at_all import Method\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reason = "ModuleNotFoundError: No module named 'nowhere_at_all'"
    with pytest.raises(SpecError, match=re.escape(f"cannot import {package / 'typo.py'}: {reason}")):
        import_all(package.name)
