"""Clean-up where sizes depend on data: each is its own, and what computes one twice has it by one name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture
from tersor.passes.cleanup import Cleanup


def test_sizes_that_depend_on_data_are_each_their_own() -> None:
    """Experts that take as many tokens as the router of their own layer gives them."""
    from transformers import JetMoeConfig, JetMoeForCausalLM

    config = JetMoeConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_key_value_heads=1, kv_channels=8,
        intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    program = capture(JetMoeForCausalLM(config).eval())
    ids = torch.randint(3, 50, (2, 9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    cleaned = Cleanup().rewrite(program, Cleanup().legality(program))
    torch.testing.assert_close(cleaned.run(inputs)[0], program.run(inputs)[0])


def test_sizes_that_depend_on_data_are_merged_with_all_that_has_them() -> None:
    """DeBERTa cuts its table of positions by a size that each layer computes anew."""
    from transformers import DebertaConfig, DebertaModel

    config = DebertaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, relative_attention=True, pos_att_type=["c2p", "p2c"], max_relative_positions=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DebertaModel(config).eval()
    fast = tersor.optimize_model(model, [], "torch")
    ids = torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(ids, mask)[0]
    torch.testing.assert_close(fast(ids, mask)[0], expected, atol=1e-5, rtol=1e-4)


class Unpadded(nn.Module):
    """The real tokens of all rows behind each other, picked as often as they are needed."""

    def __init__(self, by_places: bool) -> None:
        super().__init__()
        self.table, self.layer, self.by_places = nn.Embedding(20, 8), nn.Linear(8, 8), by_places

    def pick(self, x: Tensor, mask: Tensor) -> Tensor:
        return x[mask.nonzero(as_tuple=True)] if self.by_places else x[mask > 0]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        return self.layer(self.pick(x, mask)) + self.pick(x, mask)


@pytest.mark.parametrize("by_places", [False, True])
def test_outputs_have_the_size_that_is_left(by_places: bool) -> None:
    model = Unpadded(by_places).eval()
    inputs = {"ids": torch.randint(20, (2, 9)), "mask": torch.ones(2, 9).long()}
    fast = tersor.optimize_model(model, [], "torch", example_inputs=inputs)
    inputs["mask"] = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    with torch.no_grad():
        torch.testing.assert_close(fast(**inputs), model(**inputs))
    assert str(fast.program).count("index(") == 1
