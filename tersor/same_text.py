"""Whether two models read and write text alike, which their weights do not tell."""

from __future__ import annotations

import json
from pathlib import Path

from .ir.program import Program
from .text import TOKENIZER


def other_text(source: Program, program: Program, artifact: Path) -> str:
    """How a model's settings of generation or its tokenizer are others than those of an artifact; nothing if the same.

    A model that comes without a tokenizer, as one in memory may, says nothing of it.
    """
    own, kept = (json.loads(json.dumps(dict(p.facts.generation), default=str)) for p in (source, program))
    names = sorted(name for name in own.keys() | kept.keys() if own.get(name) != kept.get(name))
    if names:
        name = names[0]
        return f"it generates with {name}={own.get(name)!r}, and the artifact with {name}={kept.get(name)!r}"
    beside = map(Path, source.facts.tokenizer_files.values())
    copied = {file.name: file for file in sorted((artifact / TOKENIZER).glob("*"))}
    read = {file.name: file for file in beside if file.is_file()}
    if not read:
        return ""
    for name in sorted(read.keys() | copied.keys()):
        if name not in read or name not in copied or read[name].read_bytes() != copied[name].read_bytes():
            return f"its tokenizer is another one: {name} differs"
    return ""
