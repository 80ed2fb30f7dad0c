"""Prompt tokens: a Program is what it was for tokens, and reads trained embeddings where it is told to."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from decoders import DECODERS, decoder_program, rows
from torch import Tensor

from tersor.ir import archive
from tersor.ir.boundary import input_node
from tersor.ir.builder import Builder
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program
from tersor.ir.prompt_tokens import aten, embedding_of_ids, embeddings, prompt_count, with_prompt_tokens
from tersor.ir.straight import straight
from tersor.ir.verifier import verify
from tersor.passes.pipeline import run
from tersor.runtime.kv_cache import KvCache
from tersor.runtime.tree import in_a_row


@cache
def plain(name: str) -> Program:
    """The model in steps that take trees."""
    return run(decoder_program(name), ["kv-cache", "speculate"])[0]


def prompted(name: str, tokens: list[int]) -> Program:
    """With prompt tokens that are the embeddings of ``tokens``."""
    return with_prompt_tokens(plain(name), embeddings(plain(name))[tokens])


def step(program: Program, ids: list[int], probes: list[int] | None = None) -> tuple[Tensor, ...]:
    """All that one step gives, over an empty cache."""
    stepping = program.stepping
    assert stepping is not None
    assert stepping.branches is not None
    cache = KvCache(stepping, program.inputs, 1)
    branching = in_a_row(torch.arange(len(ids)), 1)
    given: dict[str, Any] = {
        stepping.ids: torch.tensor([ids]),
        stepping.positions: torch.arange(len(ids))[None],
        stepping.wanted: torch.arange(len(ids))[None],
        stepping.branches.depth: branching.depths,
        stepping.branches.ancestors: branching.ancestors,
    }
    if stepping.padding is not None:
        given[stepping.padding] = torch.ones(1, len(ids), dtype=torch.int64)
    if stepping.branches.probes is not None:
        given[stepping.branches.probes] = torch.tensor([probes or [0] * len(ids)])
    return program.step({**cache.inputs(), **given})


@pytest.mark.parametrize("name", DECODERS)
def test_tokens_are_what_they_were_and_prompt_tokens_what_their_embeddings_are(name: str) -> None:
    program, ids = prompted(name, [50, 60]), [7, 8, 9, 10, 11]
    verify(program)
    assert prompt_count(program) == 2
    for before, after in zip(step(plain(name), ids), step(program, ids), strict=True):
        assert torch.equal(before, after)
    replaced = step(plain(name), [7, 50, 9, 60, 11])
    for before, after in zip(replaced, step(program, ids, [0, 1, 0, 2, 0]), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_without_trees_there_are_none(name: str) -> None:
    found = straight(prompted(name, [50]))
    verify(found)
    assert str(found) == str(straight(plain(name)))
    assert found.weights.keys() == plain(name).weights.keys()


def test_callers_give_what_they_gave_and_get_what_they_got() -> None:
    program, inputs = prompted("gemma3", [50, 60]), rows([9, 4])
    assert program.called_with == plain("gemma3").called_with
    assert torch.equal(program.run(inputs)[0], plain("gemma3").run(inputs)[0])


def test_they_are_saved_and_read_back(tmp_path: Any) -> None:
    program = prompted("llama", [50, 60])
    archive.save(program, tmp_path / "p")
    loaded = archive.load(tmp_path / "p")
    assert loaded.stepping == program.stepping
    assert torch.equal(step(loaded, [5, 6], [0, 2])[0], step(program, [5, 6], [0, 2])[0])


def test_where_they_cannot_be_is_said() -> None:
    bare = run(decoder_program("llama"), ["kv-cache"])[0]
    prompts = torch.zeros(1, embeddings(bare).shape[1])
    with pytest.raises(RefusedError, match="steps must take trees"):
        with_prompt_tokens(bare, prompts)
    with pytest.raises(RefusedError, match="has prompt tokens already"):
        with_prompt_tokens(prompted("llama", [50]), prompts)
    with pytest.raises(ValueError, match="no embeddings of 32 channels"):
        with_prompt_tokens(plain("llama"), prompts[:, 1:])


def test_ids_that_are_looked_up_twice_are_named() -> None:
    work = plain("llama").edit()
    lookup = embedding_of_ids(work)
    assert work.stepping is not None
    g = Builder(work, lookup.next)
    again = g.call(aten.embedding.default, lookup.args[0], input_node(work, work.stepping.ids))
    total = g.add(lookup, again)
    lookup.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    with pytest.raises(RefusedError, match=f"looked up more than once, by {lookup.name} and {again.name}"):
        embedding_of_ids(work)
