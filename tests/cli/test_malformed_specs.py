"""Ten thousand malformed spec strings: each one gives one short SpecError, and none gives anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersor import SpecError
from tersor.passes.registry import find_methods, find_passes
from tersor.passes.spec import Spec, options_of, parse_spec
from tersor.passes.tokens.method import TokenMethod

COUNT = 10_000
GOOD = (
    "token-drop:method=zero-tprune,keep=0.7,layers=3-9",
    "token-drop:method=tome,flops=0.65,proportional=false",
    "token-drop:method=random,keep=0.9+0.8,layers=1+2,seed=3",
    "constant-folding:growth=100",
    "dead-code",
)
ALPHABET = "abcxyz-_=:,+.0159 \t\n\0'\"\\{}[]()%$#@!~é漢😀\u202e\ufeff"

Mutation = Callable[[random.Random, str], str]


def _letters(source: random.Random, length: int) -> str:
    return "".join(source.choice(ALPHABET) for _ in range(length))


def _noise(source: random.Random, _: str) -> str:
    return _letters(source, source.choice((0, 1, 5, 30, 300)))


def _edit(source: random.Random, good: str) -> str:
    text = list(good)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(text) + 1)
        kind = source.randrange(3)
        if kind == 0:
            text.insert(place, source.choice(ALPHABET))
        elif text and kind == 1:
            text.pop(place % len(text))
        elif text:
            text[place % len(text)] = source.choice(ALPHABET)
    return "".join(text)


def _cut(source: random.Random, good: str) -> str:
    return good[: source.randrange(len(good))] + source.choice(("", ":", ",", "=", ":,", "=,", "=="))


def _twice(_: random.Random, good: str) -> str:
    return f"{good},{good.partition(':')[2]}" if ":" in good else f"{good}:{good}"


def _wrong_value(source: random.Random, _: str) -> str:
    options = [o.name for o in options_of(find_passes()["token-drop"])]
    for method in find_methods(TokenMethod).values():
        options += [o.name for o in options_of(method)]
    value = source.choice(
        ("", "nan", "inf", "-inf", "1e999", "-1", "2", "0x10", "1_000", "9-3", "3-", "+", "1++2", "True!", "null", "[]",
         "9" * 40, "1e5", "٣", "0.5+", "__import__", _letters(source, 6))
    )  # fmt: skip
    method = source.choice(list(find_methods(TokenMethod)))
    return f"token-drop:method={method},{source.choice(options)}={value}"


def _wrong_name(source: random.Random, good: str) -> str:
    name = _edit(source, good.partition(":")[0])
    return f"{name}:{good.partition(':')[2]}"


MUTATIONS: tuple[Mutation, ...] = (_noise, _edit, _cut, _twice, _wrong_value, _wrong_name)


def malformed(seed: int, count: int) -> dict[str, SpecError]:
    """Strings that are refused, with their errors; a mutant that happens to be valid must print and parse back."""
    source = random.Random(seed)
    found: dict[str, SpecError] = {}
    while len(found) < count:
        text = source.choice(MUTATIONS)(source, source.choice(GOOD))
        try:
            built = parse_spec(text)
        except SpecError as error:
            found[text] = error
        else:
            assert parse_spec(str(Spec.of(built))) == built, text
    return found


def test_the_specs_that_are_mutated_are_good() -> None:
    for text in GOOD:
        assert parse_spec(str(Spec.of(parse_spec(text)))) == parse_spec(text)


def test_ten_thousand_malformed_specs_each_give_one_short_line() -> None:
    refused = malformed(0, COUNT)
    for text, error in refused.items():
        message = str(error)
        assert message.strip(), repr(text)
        assert message.isprintable(), (text, message)
        assert len(message) < 400, (text, message)
    assert len({str(error) for error in refused.values()}) > 1000


@pytest.mark.parametrize("number", range(30))
def test_the_command_line_refuses_them_before_it_reads_a_model(
    tersor: Any, tmp_path: Path, number: int
) -> None:
    # A process takes no NUL byte among its arguments, so no command can be given one.
    text, error = next(item for item in malformed(1 + number, 20).items() if "\0" not in item[0])
    outcome = tersor(
        "convert", "a_module_that_must_not_be:imported", "-o", tmp_path / "out", f"--pass={text}"
    )
    assert outcome.code == 2
    assert outcome.error == " ".join(str(error).split())
    assert not list(tmp_path.iterdir())
