"""A Program whose steps take trees of tokens, for steps in which each token follows the one before it."""

from __future__ import annotations

from dataclasses import replace

from .boundary import input_node, remove_input
from .program import Program
from .prompt_tokens import remove_prompt_tokens


def straight(program: Program) -> Program:
    """``program`` without the inputs that say how new tokens branch, and prompt tokens; itself where it has none.

    Targets have faster forms for rows of tokens than for trees.
    """
    branches = None if program.stepping is None else program.stepping.branches
    if program.stepping is None or branches is None:
        return program
    work = program.edit()
    if branches.probes is not None:
        remove_prompt_tokens(work, branches.probes)
    for name in (branches.depth, branches.ancestors):
        node = input_node(work, name)
        for user in list(node.users):
            # Both are optional operands, of which absence means just this.
            user.args = tuple(None if arg is node else arg for arg in user.args)
            user.kwargs = {key: None if arg is node else arg for key, arg in user.kwargs.items()}
        remove_input(work, name)
    work.stepping = replace(program.stepping, branches=None)
    return work
