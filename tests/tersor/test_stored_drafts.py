"""Models that guess, beside a model whose weights are stored in few bits: what they share is stored as there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import LLAMA, huggingface

from tersor import optimize_model
from tersor.generating import Generator
from tersor.ir.capture import capture
from tersor.passes.pipeline import run

PROMPTS = [[5, 6, 7, 8], list(range(3, 20))]


def llama(layers: int) -> torch.nn.Module:
    sizes = dict(LLAMA, num_hidden_layers=layers, hidden_size=64, head_dim=16, intermediate_size=96)
    model = huggingface("LlamaConfig", "LlamaForCausalLM", **sizes)()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return model


@pytest.mark.parametrize("drafter", ["self", "model,exits=1"])
def test_kinds_by_layer_reach_a_draft_of_fewer_layers(drafter: str) -> None:
    found = []
    for passes in (["kv-cache"], ["kv-cache", f"speculate:drafter={drafter}"]):
        program, _ = run(capture(llama(4)), passes)
        (last,) = (name for name in program.weights if "layers.3.mlp.up_proj" in name)
        options = {"weights": "int8", "weight_kinds": {last: "int4"}, "threads": 1}
        found.append(Generator(program, "onnx", options)(PROMPTS, max_new_tokens=8))
    assert found[0] == found[1]


def test_a_model_of_its_own_is_not_stored_as_the_one_that_checks(tmp_path: Path) -> None:
    optimize_model(llama(1), ["kv-cache"]).save(tmp_path / "draft")
    passes = ["kv-cache", f"speculate:drafter=model,path={tmp_path / 'draft'}"]
    fast = optimize_model(llama(2), passes, weights="int8", threads=1)
    plain = optimize_model(llama(2), ["kv-cache"], weights="int8", threads=1)
    assert fast.generate(PROMPTS, max_new_tokens=8) == plain.generate(PROMPTS, max_new_tokens=8)
    for draft in fast.generator._models._decoders.values():
        assert "weights" not in fast.generator._options_of(draft.program)
