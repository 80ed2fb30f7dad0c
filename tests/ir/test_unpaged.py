"""Rows that share pages become rows with slots of their own, which compute the same."""

from __future__ import annotations

import pytest
import torch
from decoders import DECODERS, PAGED, decoder_program, rows

from tersor.ir.growing import growing
from tersor.ir.unpaged import unpaged
from tersor.ir.verifier import verify
from tersor.passes.pipeline import run


@pytest.mark.parametrize("name", DECODERS)
def test_it_computes_the_same_without_pages(name: str) -> None:
    program, _ = run(decoder_program(name), [PAGED, "speculate"])
    own = unpaged(program)
    verify(own)
    assert own.stepping is not None
    assert all(slots.pages is None for slots in own.stepping.slots)
    assert "pages" not in "".join(f"{spec.shape}" for spec in (*own.inputs, *own.outputs))
    assert not any("_pages" in str(node.target) for node in own.graph.nodes if node.op == "call_function")
    inputs = rows([13, 6, 1])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(own.run(inputs)[0][real], program.run(inputs)[0][real], rtol=0, atol=1e-5)


def test_what_has_no_pages_stays_what_it_is() -> None:
    for specs in ([], ["kv-cache"]):
        program, _ = run(decoder_program("llama"), specs) if specs else (decoder_program("llama"), None)
        assert unpaged(program) is program


def test_states_grow_without_pages_only() -> None:
    program, _ = run(decoder_program("llama"), [PAGED])
    with pytest.raises(ValueError, match="slots of their own"):
        growing(program)
    assert growing(unpaged(program)).stepping is None
