"""The rewrite: attention of a step sees a tree, which is what the pipeline then checks; and it is taken out again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import DECODERS, decoder_program, rows

from tersor.ir import archive
from tersor.ir.errors import RefusedError
from tersor.ir.operands import arguments
from tersor.ir.program import Program
from tersor.ir.stepping import run_in_steps
from tersor.ir.straight import straight
from tersor.ir.verifier import verify
from tersor.passes.pipeline import run
from tersor.passes.speculate.insert import NOTE


def guessing(name: str, *specs: str) -> Program:
    program, report = run(decoder_program(name), ["kv-cache", *(specs or ("speculate",))])
    assert report.steps[-1].verdict == "kept"
    return program


def test_every_attention_reads_how_tokens_branch() -> None:
    before, _ = run(decoder_program("gemma3"), ["kv-cache"])
    after = guessing("gemma3", "speculate:drafter=recycle")
    assert after.stepping is not None
    assert after.stepping.branches is not None
    assert after.notes[NOTE] == "speculate:drafter=recycle"
    assert "depth: i64[batch, tokens], ancestors: bool[batch, tokens, tokens])" in str(after).splitlines()[0]
    old, new = (
        [line.split("->")[0] for line in str(p).splitlines() if "cached_attention(" in line]
        for p in (before, after)
    )
    assert [line.replace(") {", ", %depth, %ancestors) {") for line in old] == new
    assert [s.name for s in after.called_with] == [s.name for s in before.called_with]


@pytest.mark.parametrize("name", DECODERS)
def test_siblings_change_nothing(name: str) -> None:
    program, inputs = guessing(name), rows([13, 6, 1])
    whole = decoder_program(name).run(inputs)[0]
    real = inputs["attention_mask"].bool()
    for bounds in (None, [5], [12], []):
        found = run_in_steps(program.stepping, program.inputs, program.outputs, program.step, inputs, bounds)
        torch.testing.assert_close(found[0][real], whole[real], rtol=0, atol=1e-5)


def test_a_mask_that_is_not_looked_at_is_noticed() -> None:
    program = guessing("llama").edit()
    inputs = rows([13, 13])
    for node in program.graph.nodes:
        if "cached_attention" in str(node.target):
            node.args = tuple(None if str(a) == "ancestors" else a for a in node.args)
    found = run_in_steps(program.stepping, program.inputs, program.outputs, program.step, inputs)[0]
    assert (found - decoder_program("llama").run(inputs)[0]).abs().max() > 1e-3


def test_straight_is_what_it_was_before() -> None:
    before, _ = run(decoder_program("gemma3"), ["kv-cache"])
    program = straight(guessing("gemma3"))
    verify(program)
    assert program.stepping == before.stepping
    assert program.inputs == before.inputs
    assert straight(before) is before
    attentions = [node for node in program.graph.nodes if "cached_attention" in str(node.target)]
    assert len(attentions) == 4
    assert all(arguments(node)["ancestors"] is None for node in attentions)


def test_it_is_saved_and_read_back(tmp_path: Any) -> None:
    program = guessing("gemma3")
    archive.save(program, tmp_path / "p")
    loaded = archive.load(tmp_path / "p")
    assert loaded.stepping == program.stepping
    inputs = rows([7, 5])
    assert torch.equal(loaded.run(inputs)[0], program.run(inputs)[0])


@pytest.mark.parametrize(
    ("specs", "reason"),
    [(["speculate"], "put kv-cache before it"), (["kv-cache", "speculate", "speculate"], "guesses already")],
)
def test_it_needs_a_cache_and_is_done_once(specs: list[str], reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        run(decoder_program("llama"), specs)
