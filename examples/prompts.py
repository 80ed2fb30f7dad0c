"""Prompts for decoders: eight kinds of text, three of each, from one token to two thousand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tersor.text import opening

LONG = 2000  # tokens
_LONG_AT = (0, 10_000, 20_000)  # where in the manual they begin
_TEXTS: dict[str, Sequence[str]] = {
    "prose": (
        "The best way to learn a language is",
        "It was a cold morning in November when the old fisherman walked down to the harbour and",
        "Photosynthesis is the process by which plants",
    ),
    "code": (
        'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
        "import json\n\nclass Config:\n    def __init__(self, path):\n        self.path = path\n\n    def read(self):",
        "SELECT name, COUNT(*) FROM orders WHERE status = 'open'",
    ),
    "lists": (
        "Countries and their capitals:\n1. France - Paris\n2. Germany - Berlin\n3.",
        "Shopping list:\n- apples\n- bread\n- milk\n-",
        "The planets of the solar system, in order:\n1. Mercury\n2.",
    ),
    "translation": (
        "English: Good morning. French: Bonjour.\nEnglish: Thank you very much. French:",
        "English: The house is red. German: Das Haus ist rot.\nEnglish: The car is blue. German:",
        "English: Where is the station? Spanish:",
    ),
    "repetition": (
        "one two three four one two three four one two three four one two",
        "The cat sat on the mat. The cat sat on the mat. The cat sat on",
        "a,b,c\n1,2,3\n4,5,6\n7,8,9\n10,11,12\n",
    ),
    "other languages": (
        "Die Hauptstadt von Deutschland ist",
        "La cuisine française est connue pour",
        "日本の首都は",
    ),
    "one token": ("The", "def", "In"),
}


@dataclass(frozen=True)
class Prompt:
    """Token ids, and what kind of text they are."""

    kind: str
    tokens: list[int]


def prompts(tokenizer: Any, sections: Sequence[tuple[str, str]]) -> list[Prompt]:
    """Twenty-four prompts in a fixed order; those of one token have no other before them.

    Args:
        sections: titles and texts, of which the long prompts are made: `real_data.prose()`.
    """
    found = []
    for kind, texts in _TEXTS.items():
        special = kind != "one token"
        found += [Prompt(kind, tokenizer(text, add_special_tokens=special)["input_ids"]) for text in texts]
    manual, begun = _manual(tokenizer, sections), opening(tokenizer)
    found += [Prompt("2,000 tokens", begun + manual[start : start + LONG - len(begun)]) for start in _LONG_AT]
    return found


def untouched(tokenizer: Any, sections: Sequence[tuple[str, str]]) -> list[int]:
    """The same text behind the last long prompt, without what texts open with: what may be trained on."""
    return _manual(tokenizer, sections)[_LONG_AT[-1] + 2 * LONG :]


def untouched_rows(
    tokenizer: Any, sections: Sequence[tuple[str, str]], count: int, tokens: int
) -> list[list[int]]:
    """The same text in rows of so many tokens, each of which opens as texts do: what may be measured on."""
    text, begun = untouched(tokenizer, sections), opening(tokenizer)
    piece = tokens - len(begun)
    return [begun + text[start : start + piece] for start in range(0, count * piece, piece)]


def _manual(tokenizer: Any, sections: Sequence[tuple[str, str]]) -> list[int]:
    text = "\n\n".join(f"{title}\n{text}" for title, text in sections)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]
