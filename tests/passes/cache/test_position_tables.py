"""Positions that are looked up in tables of any make, and the table's end, past which no text may go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import huggingface
from torch import Tensor, nn

import tersor
from tersor.codegen.text_limits import most_tokens
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.passes.pipeline import run

_SMALL: dict[str, Any] = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
_GPT: dict[str, Any] = dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gptj": ("GPTJConfig", "GPTJForCausalLM", dict(_GPT, rotary_dim=4)),  # gather, by positions repeated
    "codegen": ("CodeGenConfig", "CodeGenForCausalLM", dict(_GPT, rotary_dim=4)),  # index
    "falcon": (  # broadcast_to
        "FalconConfig",
        "FalconForCausalLM",
        dict(_SMALL, new_decoder_architecture=True, num_kv_heads=2),
    ),
    "phimoe": (  # a router that scatters and takes maxima
        "PhimoeConfig",
        "PhimoeForCausalLM",
        dict(_SMALL, num_key_value_heads=2, intermediate_size=48, num_local_experts=4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_generates_what_the_model_does(name: str) -> None:
    config, kind, options = MODELS[name]
    model: Any = huggingface(config, kind, bos_token_id=1, eos_token_id=2, pad_token_id=0, **options)()
    fast = tersor.optimize_model(model, ["kv-cache"], "torch")
    for length in (1, 9):
        ids = torch.randint(3, 99, (1, length))
        want = model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
        assert fast.generate([ids[0].tolist()], max_new_tokens=8)[0] == want


class Learned(nn.Module):
    """As many GPTs are written: the first rows of a table of positions."""

    def __init__(self, three_dims: bool, behind: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.behind = nn.Parameter(torch.randn(behind)) if behind else None
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)
        self.places = nn.Parameter(torch.randn(*([1] if three_dims else []), 24, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([layer, nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)])

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        count = ids.shape[1]
        places = self.places[:, :count] if self.places.dim() == 3 else self.places[:count]
        x = self.table(ids) + places
        hidden = torch.ones(count, count, dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=hidden)
        scores = self.head(x)
        return {"logits": scores if self.behind is None else scores + self.behind[:count]}


@pytest.mark.parametrize("shape", [(24, 50), (24, 1)])
@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_places_that_are_added_behind_the_head(shape: tuple[int, ...], target: str) -> None:
    torch.manual_seed(0)
    model = Learned(False, shape).eval()
    fast = tersor.optimize_model(model, ["kv-cache"], target, example_inputs=torch.randint(0, 50, (2, 9)))
    for prompt in ([5], [5, 7, 9]):
        text = list(prompt)
        for _ in range(12):
            text.append(int(model(torch.tensor([text]))["logits"][0, -1].argmax()))
        assert fast.generate([prompt], max_new_tokens=12)[0] == text


@pytest.mark.parametrize("three_dims", [False, True])
@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_the_first_rows_of_a_table(three_dims: bool, target: str) -> None:
    torch.manual_seed(0)
    model = Learned(three_dims).eval()
    program, _ = run(capture(model, torch.randint(0, 50, (2, 9))), ["kv-cache"])
    assert most_tokens(program) == 24
    for ids in (torch.randint(0, 50, (2, 9)), torch.randint(0, 50, (3, 24))):
        torch.testing.assert_close(program(ids), model(ids), atol=1e-5, rtol=1e-5)
    fast = tersor.optimize_model(model, ["kv-cache"], target, example_inputs=torch.randint(0, 50, (2, 9)))
    text = [5, 7, 9]
    for _ in range(12):
        text.append(int(model(torch.tensor([text]))["logits"][0, -1].argmax()))
    assert fast.generate([[5, 7, 9]], max_new_tokens=12)[0] == text
    with pytest.raises(InputError, match="24"):
        fast.generate([[5] * 20], max_new_tokens=8)
