"""What differs between two Programs, as a unified diff of their texts."""

from __future__ import annotations

import difflib

from torch import fx

from .program import Program
from .text import Printer


def diff(before: Program, after: Program, context: int = 3) -> str:
    """A unified diff, empty when the texts are equal.

    Values that correspond carry the name they have in ``before``, so that an insertion changes the lines
    where it is, not the number of every value after it.  Operations on sizes appear only where nothing else
    differs.
    """
    for full in (False, True):
        text = _diff(before, after, context, full)
        if text:
            return text
    return ""


def _diff(before: Program, after: Program, context: int, full: bool) -> str:
    names = _corresponding_names(before, after, full)
    old = Printer(before, full=full).lines(weights=full, fold=False)
    new = Printer(after, full=full, names=names).lines(weights=full, fold=False)
    lines = difflib.unified_diff(old, new, "before", "after", n=context, lineterm="")
    return "".join(line + "\n" for line in lines)


def _corresponding_names(before: Program, after: Program, full: bool) -> dict[fx.Node, str]:
    """For every value of ``after`` its counterpart's name in ``before``, else one not in use there."""
    old, new = (Printer(program, full=full).operations() for program in (before, after))
    # Result types change downstream of a rewrite, so values correspond by operator and layer.
    keys_old, keys_new = ([(line.layer, str(line.node.target)) for line in side] for side in (old, new))
    names: dict[fx.Node, str] = {}
    for tag, a, b, c, d in difflib.SequenceMatcher(None, keys_old, keys_new, autojunk=False).get_opcodes():
        if tag == "equal":
            names |= {new[j].node: old[i].node.name for i, j in zip(range(a, b), range(c, d), strict=True)}
    taken = {node.name for node in before.graph.nodes} | set(names.values())
    for node in after.graph.nodes:
        if node in names or node.op != "call_function":
            continue
        name, number = node.name, 0
        while name in taken:
            number += 1
            name = f"{node.name}_{number}"
        taken.add(name)
        names[node] = name
    return names
