"""Whether two models read and write text alike, which their weights do not tell."""

from __future__ import annotations

import json
from pathlib import Path

from .ir.program import Program
from .settings import OWN
from .text import TOKENIZER

# Copied with a tokenizer's files, and about images.
_NO_TEXT = frozenset({"preprocessor_config.json"})


def other_text(source: Program, program: Program, artifact: Path) -> str:
    """How a model's settings of generation or its tokenizer are others than those of an artifact; nothing if the same.

    Settings that nothing here goes by may differ, as those do that another version of transformers adds.  A model that
    comes without a tokenizer, as one in memory may, says nothing of it, and neither does an artifact without one; of
    both, the files are compared that both have.
    """
    own, kept = (json.loads(json.dumps(dict(p.facts.generation), default=str)) for p in (source, program))
    names = sorted(name for name in OWN & (own.keys() | kept.keys()) if own.get(name) != kept.get(name))
    if names:
        name = names[0]
        return f"it generates with {name}={own.get(name)!r}, and the artifact with {name}={kept.get(name)!r}"
    beside = map(Path, source.facts.tokenizer_files.values())
    copied = {file.name: file for file in sorted((artifact / TOKENIZER).glob("*"))}
    read = {file.name: file for file in beside if file.is_file()}
    for name in sorted((read.keys() & copied.keys()) - _NO_TEXT):
        if read[name].read_bytes() != copied[name].read_bytes():
            return f"its tokenizer is another one: {name} differs"
    return ""
