"""Dense experts compute what routed experts compute."""

from __future__ import annotations

import pytest
import torch

from tersor.ir.capture import capture
from tersor.ir.capture.experts import dense_experts


def small_mixtral() -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralModel

    return MixtralModel(
        MixtralConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, num_local_experts=5, num_experts_per_tok=2, max_position_embeddings=32,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("routed", ["eager", "batched_mm"])
def test_dense_equals_routed(routed):
    model = small_mixtral()
    ids = torch.randint(50, (3, 7))
    model.set_experts_implementation(routed)
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        with dense_experts(model):
            torch.testing.assert_close(model(ids).last_hidden_state, expected, atol=1e-6, rtol=1e-5)
    assert model.config._experts_implementation == routed


def test_the_captured_graph_has_no_rank_that_depends_on_values():
    program = capture(small_mixtral())
    shapes = [n.meta["val"].shape for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    symbolic = [size for shape in shapes for size in shape if isinstance(size, torch.SymInt)]
    used = {str(symbol) for size in symbolic for symbol in size.node.expr.free_symbols}
    assert used <= set(program.symbols)


def test_what_running_all_experts_costs_is_told():
    (note,) = capture(small_mixtral()).notes["capture"]
    assert "all 5 experts, of which the model runs 2: these layers take 2.5 times the model's FLOPs" in note
