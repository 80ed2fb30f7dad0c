"""A model that takes one row and no more is captured with one, and its length still varies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture
from tersor.ir.errors import InputError

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
REJECTED = "the batch is fixed at 1, the example's: the model rejects it with 2 such rows"


class OneText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 16)

    def forward(self, ids: Tensor, scale: Tensor | None = None) -> Tensor:
        if ids.shape[0] != 1:
            raise ValueError("one text, please")
        x = self.table(ids)
        return (x if scale is None else x * scale).softmax(-1).mean(1)


@pytest.fixture
def classifier() -> nn.Module:
    """Without a padding id, as Hugging Face's classifiers are unless told otherwise."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = dict(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return GPT2ForSequenceClassification(
        GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, pad_token_id=None)
    ).eval()


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_row_is_kept_and_the_length_varies(tokens: int) -> None:
    model = OneText().eval()
    program = capture(model, {"ids": IDS[:1, :tokens], "scale": torch.ones(1)})
    assert [spec.shape for spec in program.inputs] == [(1, "tokens"), (1,)]
    assert program.notes["capture"] == [REJECTED]
    torch.testing.assert_close(program(IDS[:1], torch.ones(1)), model(IDS[:1], torch.ones(1)))
    with pytest.raises(InputError, match="size 2 where the program takes 1"):
        program(IDS, torch.ones(1))


def test_a_classifier_without_padding_id_is_captured_from_a_row_and_from_nothing(
    classifier: nn.Module,
) -> None:
    given = capture(classifier, {"input_ids": IDS[:1, :5]})
    suggested = capture(classifier)
    for program, more in ((given, {}), (suggested, {"attention_mask": torch.ones(1, 9, dtype=torch.int64)})):
        assert {spec.shape for spec in program.inputs} == {(1, "tokens")}
        assert "the batch is fixed at 1" in program.notes["capture"][0]
        inputs = {"input_ids": IDS[:1], **more}
        torch.testing.assert_close(program(**inputs)["logits"], classifier(**inputs).logits)


def test_it_is_optimized_with_calibration_of_one_row(classifier: nn.Module) -> None:
    inputs = {"input_ids": IDS[:1]}
    fast = tersor.optimize_model(classifier, passes=[], target="onnx", calibration=inputs)
    torch.testing.assert_close(fast(**inputs).logits, classifier(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert REJECTED in fast.report.notes


def test_a_batch_that_was_named_is_not_fixed() -> None:
    with pytest.raises(InputError, match="the batch is to vary, but the model rejects it with 2 such rows"):
        capture(OneText().eval(), {"ids": IDS[:1]}, {"ids": {0: "batch", 1: "tokens"}})
    program = capture(OneText().eval(), {"ids": IDS[:1]}, {"ids": {1: "tokens"}})
    assert program.inputs[0].shape == (1, "tokens")


def test_what_the_model_does_not_take_at_all_is_told_as_it_was_given() -> None:
    with pytest.raises(InputError, match=r"ids int64 \[2, 9\].*one text, please"):
        capture(OneText().eval(), {"ids": IDS})
    with pytest.raises(InputError, match=r"ids float32 \[1, 9\]"):
        capture(OneText().eval(), {"ids": IDS[:1].float()})
