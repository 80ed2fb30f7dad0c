"""Trained embeddings that stand in the place of tokens, to see what a model would say further on.

*Prompt tokens*, as in parallel prompt decoding (Chen et al. 2024): the model is fed a vector that is the embedding of
no token, and what it says behind that is a guess of a later token.  Which new tokens are such, an input of their own
says, so that token ids mean what they mean without it, and whoever calls the Program cannot give one by mistake.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from .boundary import add_input, input_node, remove_input
from .builder import Builder
from .errors import RefusedError
from .program import Program
from .same_elements import origin

aten = torch.ops.aten


def with_prompt_tokens(program: Program, prompts: Tensor) -> Program:
    """``program`` with ``prompts [count, width]`` as the embeddings of its prompt tokens; see ``Branches.probes``.

    Raises:
        RefusedError: its steps take no trees, it has prompt tokens already, or it does not look its ids up once.
        ValueError: ``prompts`` are of another width.
    """
    work = program.edit()
    stepping = work.stepping
    if stepping is None or stepping.branches is None:
        raise RefusedError("prompt tokens stand beside each other, for which steps must take trees")
    if stepping.branches.probes is not None:
        raise RefusedError("the model has prompt tokens already")
    lookup = embedding_of_ids(work)
    table = work.weights[str(_table(lookup).target)]
    if prompts.dim() != 2 or prompts.shape[1] != table.shape[1]:
        raise ValueError(f"{list(prompts.shape)} are no embeddings of {table.shape[1]} channels")
    ids = input_node(work, stepping.ids)
    probes = add_input(work, "probes", tuple(ids.meta["val"].shape), torch.int64)
    g = Builder(work, lookup.next, str(lookup.meta.get("layer", "")))
    readers = list(lookup.users)
    # Row 0 is never looked at: a token that is none of them keeps its own embedding.
    rows = torch.cat([torch.zeros(1, table.shape[1]), prompts.float()]).to(table.dtype)
    prompt = g.call(aten.embedding.default, g.weight("prompts", rows), probes)
    is_prompt = g.call(aten.unsqueeze.default, g.call(aten.gt.Scalar, probes, 0), -1)
    chosen = g.call(aten.where.self, is_prompt, prompt, lookup)
    for reader in readers:
        reader.replace_input_with(lookup, chosen)
    work.stepping = replace(stepping, branches=replace(stepping.branches, probes=str(probes.target)))
    return work.finished()


def embedding_of_ids(program: Program) -> fx.Node:
    """The node that looks up the new tokens of a Program that is run in steps.

    Raises:
        RefusedError: there is none, or more than one, of which the message names two.
    """
    assert program.stepping is not None
    ids = input_node(program, program.stepping.ids)
    found: list[fx.Node] = [
        node
        for node in program.graph.nodes
        if node.target is aten.embedding.default and origin(node.args[1]) is ids
    ]
    if not found:
        raise RefusedError(f"{ids.target} is looked up in no table of embeddings")
    if len(found) > 1:
        names = " and ".join(node.name for node in found[:2])
        raise RefusedError(f"{ids.target} is looked up more than once, by {names}: one embedding of a prompt token "
                           "cannot stand for both")  # fmt: skip
    if _table(found[0]).op != "get_attr":
        raise RefusedError(
            f"{found[0].name} looks {ids.target} up in what is computed, and no table of weights"
        )
    return found[0]


def embeddings(program: Program) -> Tensor:
    """The table in which a Program that is run in steps looks its tokens up, ``[vocabulary, width]``.

    Raises:
        RefusedError: as for :func:`embedding_of_ids`.
    """
    return program.weights[str(_table(embedding_of_ids(program)).target)]


def prompt_count(program: Program) -> int:
    """How many prompt tokens there are."""
    branches = None if program.stepping is None else program.stepping.branches
    if branches is None or branches.probes is None:
        return 0
    return program.weights[prompts_name(program)].shape[0] - 1


def prompts_name(program: Program) -> str:
    """The weight that holds the embeddings of prompt tokens, from row 1; KeyError if there is none."""
    assert program.stepping is not None
    assert program.stepping.branches is not None
    probes = program.stepping.branches.probes
    if probes is None:
        raise KeyError("prompts")
    (lookup,) = (node for node in input_node(program, probes).users if node.target is aten.embedding.default)
    return str(_table(lookup).target)


def remove_prompt_tokens(work: Program, probes: str) -> None:
    """Take the input ``probes`` away from a Program that is being edited, and what it chooses."""
    downstream = [input_node(work, probes)]
    for node in downstream:
        for user in node.users:
            if user.target is aten.where.self:
                user.replace_all_uses_with(user.args[2])  # type: ignore[arg-type]
            else:
                downstream.append(user)
    work.finished()
    remove_input(work, probes)


def _table(lookup: fx.Node) -> fx.Node:
    table = lookup.args[0]
    assert isinstance(table, fx.Node)
    return table
