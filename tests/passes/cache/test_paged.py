"""The paged layout: rows share pools of pages, and steps give what whole rows give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoders import DECODERS, PAGED, decoder_program, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from tersor.codegen.stepped import called_whole
from tersor.codegen.target import find_target
from tersor.ir import archive
from tersor.ir.analyses.cost import cost
from tersor.ir.analyses.layers import layers
from tersor.ir.builder import Builder
from tersor.ir.dialect import is_dialect
from tersor.ir.errors import SpecError
from tersor.ir.program import Program
from tersor.ir.stepping import Stepping, run_in_steps
from tersor.ir.verifier import verify
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec


def paged(name: str, *more: str) -> Program:
    program, report = run(decoder_program(name), [PAGED, *more])
    assert report.steps[-1].verdict == "kept"
    return program


@pytest.mark.parametrize("name", DECODERS)
def test_steps_give_what_whole_rows_give(name: str) -> None:
    program, inputs = paged(name), rows([13, 6, 1])
    whole = decoder_program(name).run(inputs)[0]
    real = inputs["attention_mask"].bool()
    for bounds in (range(1, 13), [5, 12]):
        found = run_in_steps(program.stepping, program.inputs, program.outputs, program.step, inputs, bounds)
        torch.testing.assert_close(found[0][real], whole[real], rtol=0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["gemma3", "opt"]),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    bounds=st.sets(st.integers(1, 19), max_size=6),
    page=st.sampled_from([1, 3, 64]),
)
def test_any_division_into_steps_and_pages_gives_the_same(
    name: str, lengths: list[int], bounds: set[int], page: int
) -> None:
    program, _ = run(decoder_program(name), [f"kv-cache:layout=paged,page={page}"])
    inputs = rows(lengths, seed=len(bounds))
    whole = decoder_program(name).run(inputs)[0]
    found = run_in_steps(
        program.stepping, program.inputs, program.outputs, program.step, inputs, sorted(bounds)
    )
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[0][real], whole[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("ops", ["ort", "portable"])
@pytest.mark.parametrize("name", ["gemma3", "gpt2", "gpt-neo"])
def test_trees_give_what_whole_rows_give(name: str, ops: str) -> None:
    program, inputs = paged(name, "speculate"), rows([13, 6, 1])
    on = called_whole(find_target("onnx").lower(program, ops=ops), program.stepping)
    real = inputs["attention_mask"].bool()
    whole = decoder_program(name).run(inputs)[0]
    torch.testing.assert_close(on.run(inputs)[0][real], whole[real], rtol=0, atol=1e-4)


def test_what_is_read_by_another_table_is_noticed() -> None:
    program = paged("llama").edit()
    for node in list(program.graph.nodes):
        if is_dialect(node, "read_pages"):
            pool, table = node.args
            g = Builder(program, node)
            node.args = (pool, g.call(torch.ops.aten.flip.default, table, [1]))
    inputs = rows([13, 13])
    found = run_in_steps(program.stepping, program.inputs, program.outputs, program.step, inputs)[0]
    assert (found - decoder_program("llama").run(inputs)[0]).abs().max() > 1e-3


def test_no_page_of_a_check_is_where_a_row_of_its_own_would_have_it() -> None:
    program, tables = paged("llama"), []

    def step(inputs: Any) -> Any:
        tables.append(inputs["page_table"])
        return program.step(inputs)

    run_in_steps(program.stepping, program.inputs, program.outputs, step, rows([13, 6]))
    assert tables[0].tolist() == [[8, 6, 4, 2], [7, 5, 3, 1]]
    assert all(torch.equal(table, tables[0]) for table in tables)


def test_layers_share_a_table_by_how_far_they_look_back() -> None:
    program = paged("gemma3")
    assert program.stepping is not None
    assert [(s.capacity, s.pages.table, s.pages.blocks, s.pages.size, s.window, len(s.states))
            for s in program.stepping.slots if s.pages is not None] == [
        ("pages_4", "page_table_4", "blocks_4", 4, 4, 4), ("pages", "page_table", "blocks", 4, 0, 4),
    ]  # fmt: skip
    assert [spec.name for spec in program.called_with] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in program.returned] == ["logits"]
    text = str(program)
    assert "key_pages_0: f32[pages_4, 1, 4, 8]" in text
    reads = [line.split("   #")[0].strip() for line in text.splitlines() if " read_pages(" in line]
    assert reads[0].endswith("read_pages(%key_pages_0, %page_table_4) -> f32[batch, 1, 4*blocks_4, 8]")


def test_the_blocks_of_the_model_and_its_cost_are_still_found() -> None:
    program, plain = paged("gemma3", "speculate"), decoder_program("gemma3")
    stack = program.analysis(layers)
    assert not stack.outside
    assert [block.label for block in stack.blocks] == [b.label for b in plain.analysis(layers).blocks]
    sizes = program.step_sizes({"batch": 2, "tokens": 8})
    assert (sizes["pages"], sizes["blocks"], sizes["pages_4"]) == (4, 2, 4)
    known = {name: sizes[name] for name in program.analysis(cost).dims}
    assert program.analysis(cost).at(**known).flops > 0


def test_it_is_saved_and_read_back(tmp_path: Any) -> None:
    program = paged("gemma3", "speculate")
    archive.save(program, tmp_path / "p")
    loaded = archive.load(tmp_path / "p")
    verify(loaded)
    assert loaded.stepping == program.stepping
    inputs = rows([7, 5])
    assert torch.equal(loaded.run(inputs)[0], program.run(inputs)[0])


def test_what_has_no_pages_is_written_as_it_was_before_there_were_any() -> None:
    own, shared = (run(decoder_program("llama"), [spec])[0].stepping for spec in ("kv-cache", PAGED))
    assert own is not None
    assert shared is not None
    assert all("pages" not in slots for slots in own.to_json()["slots"])
    for stepping in (own, shared):
        assert Stepping.from_json(stepping.to_json()) == stepping


def test_a_page_holds_a_token_at_least() -> None:
    for page in (0, 10**12):
        with pytest.raises(SpecError, match=f"page={page} is not within 1 and 4096"):
            parse_spec(f"kv-cache:layout=paged,page={page}")
