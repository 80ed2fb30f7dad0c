"""Smaller models inside a model: some of its layers, or several of them at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import VOCABULARY
from decoders import DECODERS, decoder, decoder_program
from torch import nn

from tersor.ir.capture import capture
from tersor.ir.errors import RefusedError
from tersor.ir.fewer_layers import fewer_layers, parallel_layers
from tersor.ir.verifier import verify
from tersor.passes.pipeline import run

IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
GIVEN = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def cached(name: str) -> Any:
    return run(decoder_program(name), ["kv-cache"])[0]


def blocks(model: Any) -> Any:
    """The model's list of layers."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next(found for found in lists if len(found) == model.config.num_hidden_layers)


def _passes_on(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    stream = args[0] if args else kwargs["hidden_states"]
    return (stream, *output[1:]) if isinstance(output, tuple) else stream


@pytest.mark.parametrize("kept", [[0], [1], [0, 1]], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_kept_computes_what_the_model_without_the_others_does(name: str, kept: list[int]) -> None:
    model: Any = decoder(name)
    few = fewer_layers(cached(name), kept)
    verify(few)
    handles = [
        layer.register_forward_hook(_passes_on, with_kwargs=True)
        for number, layer in enumerate(blocks(model))
        if number not in kept
    ]
    try:
        reference = model(**GIVEN, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(few(**GIVEN).logits, reference, atol=1e-5, rtol=1e-4)
    assert few.stepping is not None
    states = [state.name for slots in few.stepping.slots for state in slots.states]
    assert sorted(states) == sorted(f"past_{what}_{layer}" for layer in kept for what in ("key", "value"))
    assert {spec.name for spec in few.inputs} == {*GIVEN, *few.stepping.driven}
    assert {spec.name for spec in few.outputs} == {"logits", *few.stepping.results}


def test_windows_without_a_layer_have_no_slots() -> None:
    program = cached("gemma3")
    few = fewer_layers(program, [1, 3])
    assert program.stepping is not None
    assert few.stepping is not None
    assert sorted(slots.window for slots in program.stepping.slots) == [0, 4]
    assert [slots.window for slots in few.stepping.slots] == [0]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_layers_in_parallel_add_their_changes_to_what_they_all_read(group: int) -> None:
    model: Any = decoder("gemma3")
    body = model.model
    wide = parallel_layers(cached("gemma3"), group)
    verify(wide)
    seen: list[torch.Tensor] = []
    started: list[torch.Tensor] = []

    def read(number: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            # The first of a group reads the sum of the last; the others what the first has read.
            if number % group == 0:
                started.append(args[0] if not seen else _sum(started[-1], seen))
                seen.clear()
            return (started[-1], *args[1:]), kwargs

        return hook

    handles = [
        layer.register_forward_pre_hook(read(number), with_kwargs=True)
        for number, layer in enumerate(body.layers)
    ]
    handles += [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in body.layers]
    handles.append(body.norm.register_forward_pre_hook(lambda m, a: (_sum(started[-1], seen),)))
    try:
        reference = model(**GIVEN, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(wide(**GIVEN).logits, reference, atol=1e-5, rtol=1e-4)


def _sum(start: torch.Tensor, ends: list[torch.Tensor]) -> torch.Tensor:
    return start + sum(end - start for end in ends)


def test_one_layer_at_a_time_is_the_model_itself() -> None:
    program = cached("llama")
    same = parallel_layers(program, 1)
    torch.testing.assert_close(same(**GIVEN).logits, program(**GIVEN).logits)


def test_layers_that_are_not_there_are_named() -> None:
    with pytest.raises(RefusedError, match=r"layer 2 is asked for, and the model has 2"):
        fewer_layers(cached("llama"), [2])
    with pytest.raises(RefusedError, match="no layers of attention"):
        fewer_layers(capture(nn.Linear(3, 3), (torch.ones(2, 3),)), [0])
