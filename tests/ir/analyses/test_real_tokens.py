"""Entries of an output are padding only where the graph proves them to be tokens that attention hides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.analyses.real_tokens import real_tokens
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.deviation import Reference

SIZES: dict[str, Any] = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
)
TOKENS = 12


def inputs(hidden: slice = slice(6, None)) -> dict[str, Tensor]:
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, hidden] = 0
    return {"input_ids": torch.randint(3, 49, (2, TOKENS)), "attention_mask": mask}


def bert(head: str, **config: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, head)(transformers.BertConfig(**SIZES, **config))
    return model.eval()


def rounds(program: Program, given: dict[str, Tensor], name: str, change: Callable[[Tensor], None]) -> bool:
    """Whether an output that was changed still counts as the same."""
    reference = Reference(program, [given])
    outputs = {key: value.clone() for key, value in reference.outputs[0].items()}
    change(outputs[name])
    return reference.compare_outputs([outputs]).is_rounding


@pytest.mark.parametrize("dynamic", ["auto", {}], ids=["dynamic", "static"])
def test_labels_are_no_tokens_however_many_there_are(dynamic: Any) -> None:
    given = inputs()
    program = capture(bert("BertForSequenceClassification", num_labels=TOKENS), given, dynamic)
    assert real_tokens(program, given) == {}
    assert not rounds(program, given, "logits", lambda logits: logits[:, 6:].fill_(1e6))


def test_the_padding_of_an_encoder_hides_nothing_of_the_decoder() -> None:
    import transformers

    torch.manual_seed(0)
    sides = {
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
    }
    config = transformers.BartConfig(d_model=16, vocab_size=50, max_position_embeddings=32, **sides)
    given = inputs() | {"decoder_input_ids": torch.randint(3, 49, (2, TOKENS))}
    program = capture(transformers.BartModel(config).eval(), given, {})
    real = real_tokens(program, given)
    assert real.keys() == {"encoder_last_hidden_state"}
    assert torch.equal(real["encoder_last_hidden_state"], given["attention_mask"].bool())
    assert not rounds(program, given, "last_hidden_state", lambda hidden: hidden[1, 6:].add_(1.0))
    assert rounds(program, given, "encoder_last_hidden_state", lambda hidden: hidden[1, 6:].add_(1.0))


@pytest.mark.parametrize("hidden", [slice(6, None), slice(0, 4)], ids=["right", "left"])
def test_entries_of_tokens_are_padding_where_the_attention_hides_them(hidden: slice) -> None:
    given = inputs(hidden)
    program = capture(bert("BertForQuestionAnswering"), given)
    real = real_tokens(program, given)
    assert real.keys() == {"start_logits", "end_logits"}
    assert all(torch.equal(mask, given["attention_mask"].bool()) for mask in real.values())


class Read(nn.Module):
    """One encoder's states, read as told."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = bert("BertModel", add_pooling_layer=False)
        self.read = read

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.read(self.model(input_ids=input_ids, attention_mask=attention_mask)[0])


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.flip(1),
        lambda x: x.roll(1, 1),
        lambda x: x.transpose(1, 2)[:, :TOKENS],
        lambda x: x.cumsum(1),
        lambda x: x[:, 0],
        lambda x: x.mean(2, keepdim=True).expand(-1, -1, TOKENS).transpose(1, 2),
    ],
    ids=["flip", "roll", "features", "sums", "first", "turned"],
)
def test_what_is_not_one_entry_a_token_has_no_padding(read: Callable[[Tensor], Tensor]) -> None:
    given = inputs()
    assert real_tokens(capture(Read(read).eval(), given, {}), given) == {}


def test_what_one_attention_sees_is_not_padding_because_another_hides_it() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            hidden = (mask != 0)[:, None, None]
            for attn_mask in (hidden, None):
                y = self.norm(x)[:, None]
                x = x + nn.functional.scaled_dot_product_attention(y, y, y, attn_mask=attn_mask)[:, 0]
            return x

    given = {"x": torch.randn(2, TOKENS, 16), "mask": inputs()["attention_mask"]}
    program = capture(Mixed().eval(), given)
    assert sum("attention" in str(node.target) for node in program.graph.nodes) == 2
    assert real_tokens(program, given) == {}
