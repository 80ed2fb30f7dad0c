"""States that grow: the same outputs as of whole rows, from states that are as long as the tokens they hold."""

from __future__ import annotations

import pytest
import torch
from decoders import DECODERS, decoder_program, rows

from tersor.ir.growing import growing
from tersor.ir.straight import straight
from tersor.passes.pipeline import run


@pytest.mark.parametrize("name", DECODERS)
def test_steps_of_any_sizes_give_what_whole_rows_give(name: str) -> None:
    program, _ = run(decoder_program(name), ["kv-cache"])
    grown, stepping = growing(program), program.stepping
    assert stepping is not None
    inputs = rows([14])
    ids, specs = inputs["input_ids"], {spec.name: spec for spec in grown.inputs}
    assert not any(slots.length in specs for slots in stepping.slots)
    whole = decoder_program(name).run(inputs)[0]
    pairs = [(slots, state) for slots in stepping.slots for state in slots.states]
    states = {
        state.name: torch.zeros(1, int(specs[state.name].shape[1]), 0, int(specs[state.name].shape[3]))
        for _, state in pairs
    }
    for start, stop in ((0, 7), (7, 8), (8, 9), (9, 14)):
        given = {stepping.ids: ids[:, start:stop], stepping.positions: torch.arange(start, stop)[None]}
        if stepping.padding is not None:
            given[stepping.padding] = torch.ones(1, stop - start, dtype=torch.int64)
        given[stepping.wanted] = torch.arange(stop - start)[None]
        found = dict(zip((s.name for s in grown.outputs), grown.step({**given, **states}), strict=True))
        for slots, state in pairs:
            present = found.pop(state.result)
            assert present.shape[2] == states[state.name].shape[2] + stop - start
            # What no later token sees need not be kept.
            states[state.name] = present[:, :, -(slots.window - 1) :] if slots.window else present
        (logits,) = found.values()
        torch.testing.assert_close(logits, whole[:, start:stop], rtol=0, atol=1e-5)


def test_only_rows_of_tokens_have_states_that_grow() -> None:
    with pytest.raises(ValueError, match="rows of tokens"):
        growing(decoder_program("llama"))
    tree, _ = run(decoder_program("llama"), ["kv-cache", "speculate"])
    with pytest.raises(ValueError, match="rows of tokens"):
        growing(tree)
    assert growing(straight(tree)).stepping is None
