"""Text to tokens and back, by the tokenizer that came with a model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from .ir.errors import InputError
from .ir.program import Program

TOKENIZER = "tokenizer"
# Tokens that are decoded again with each new one: more than one character's bytes come from.
_TAIL = 64
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
# Where a tokenizer tidies spaces, how many tokens behind a text may change it: those of "do n ' t" become "don't".
_TIDIED = 3


def tokenizer_folder(program: Program, artifact: Path | None) -> Path | None:
    """Where the tokenizer's files are: in the artifact, else beside the weights; None where there are none."""
    if artifact is not None and (artifact / TOKENIZER).is_dir():
        return artifact / TOKENIZER
    files = [Path(file) for file in program.facts.tokenizer_files.values()]
    return files[0].parent if files and files[0].is_file() else None


def load_tokenizer(folder: Path | None) -> Any:
    """The tokenizer in ``folder``.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if folder is None:
        raise InputError(
            "this model came without a tokenizer: give token ids, or tokenizer=, or convert a folder that has one"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"no tokenizer can be read from {folder}: {reason}") from error


def opening(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before every text; models are lost in a text without those they know."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    places = range(len(whole) - len(bare) + 1)
    return next((whole[:place] for place in places if whole[place : place + len(bare)] == bare), [])


class Written:
    """Text that grows token by token; ``text`` is what is complete of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        # Of the last tokens that gave characters, where they begin and end: a token is decoded behind these alone,
        # whatever its own first character depends on.
        self._begin = self._end = 0
        self._ahead = _TIDIED if getattr(tokenizer, "clean_up_tokenization_spaces", False) else 0
        self.text = ""

    def append(self, token: int) -> str:
        """The characters that are complete since the last call: a character may take several tokens."""
        self._tokens.append(token)
        ready = len(self._tokens) - self._ahead
        if ready <= self._end:
            return ""
        new = self._behind(ready)
        if not new or new.endswith(_UNFINISHED) or (self._ahead and not self._behind().startswith(new)):
            return ""
        self._begin, self._end = self._end, ready
        self.text += new
        return new

    def finish(self) -> str:
        """What is left at the end, complete or not.

        ``text`` is that of all tokens then: bytes that are no characters may be shown otherwise once more follow.
        """
        rest = self._behind()
        self.text = self._decoded(self._tokens)
        return rest

    def _behind(self, ready: int | None = None) -> str:
        """What the tokens behind the last that gave characters add to these, up to a token."""
        known, text = (self._decoded(self._tokens[self._begin : end]) for end in (self._end, ready))
        return text[len(known) :]

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text


def stops_at(tokenizer: Any, texts: Sequence[str]) -> Any:
    """Whether one of ``texts`` ends in the last of the tokens, wherever tokens begin and end in it."""
    # A token is one byte at least.
    most = max(_TAIL, *(len(text.encode()) + 1 for text in texts))

    def stops(tokens: Sequence[int]) -> bool:
        tail = list(tokens[-most:])
        before, text = (tokenizer.decode(part, skip_special_tokens=False) for part in (tail[:-1], tail))
        # The last token may complete a character that was begun, or take a space away.
        same = zip(before, text, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], same))
        return any(text.rfind(stop) + len(stop) > known for stop in texts if stop in text)

    return stops


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """What ``text`` is to a model.

    Raises:
        InputError: it is no Unicode, which no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt {text!r} is no Unicode text: its character {error.start} is half of one, as bytes that are "
            "not UTF-8 become on a command line"
        ) from None
    return [int(token) for token in tokenizer(text)["input_ids"]]
