"""Inputs that a model's own configuration asks for, and how given ones find their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.capture.dims import dynamic_dims
from tersor.ir.capture.inputs import suggested_inputs
from tersor.ir.errors import InputError


def huggingface(config_name: str, model_name: str, **config: object) -> nn.Module:
    import transformers

    return getattr(transformers, model_name)(getattr(transformers, config_name)(**config)).eval()


SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def test_text_comes_with_a_mask_that_pads_and_fits_the_position_table():
    model = huggingface("BertConfig", "BertModel", vocab_size=11, max_position_embeddings=9, **SMALL)
    inputs = suggested_inputs(model)
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert inputs["input_ids"].max() < 11
    assert inputs["input_ids"].shape[1] <= 9
    assert 0 < int((inputs["attention_mask"] == 0).sum()) < inputs["attention_mask"].numel()


def test_an_encoder_and_decoder_get_ids_of_different_lengths():
    model = huggingface(
        "T5Config", "T5Model", vocab_size=11, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    inputs = suggested_inputs(model)
    assert inputs["decoder_input_ids"].shape != inputs["input_ids"].shape


@pytest.mark.parametrize(
    ("names", "config", "shape"),
    [
        (
            ("ViTConfig", "ViTModel"),
            dict(SMALL, image_size=(16, 24), patch_size=8, num_channels=1),
            (2, 1, 16, 24),
        ),
        (
            ("VideoMAEConfig", "VideoMAEModel"),
            dict(SMALL, image_size=16, patch_size=8, num_frames=4, tubelet_size=2),
            (2, 4, 3, 16, 16),
        ),
        (
            ("ASTConfig", "ASTModel"),
            dict(SMALL, num_mel_bins=16, max_length=32, patch_size=8, frequency_stride=8, time_stride=8),
            (2, 32, 16),
        ),
    ],
)
def test_pixels_and_spectra_have_the_configured_size(names, config, shape):
    model = huggingface(*names, **config)
    (value,) = suggested_inputs(model).values()
    assert value.shape == shape
    with torch.no_grad():
        model(value)


def test_a_timm_model_asked_for_another_size_gets_that_size():
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, in_chans=1, depth=1, embed_dim=24, num_heads=2
    )
    (value,) = suggested_inputs(model).values()
    assert value.shape == (2, 1, 32, 32)


def test_sizes_that_differ_have_names_of_their_own():
    inputs = {
        "x": torch.zeros(2, 5, 8),
        "memory": torch.zeros(2, 7, 8),
        "mask": torch.zeros(5, 7, dtype=torch.bool),
    }
    dims = dynamic_dims(inputs, "auto")
    assert dims["x"] == {0: "batch", 1: "tokens"}
    assert dims["memory"] == {0: "batch", 1: "memory_tokens"}
    assert dims["mask"] == {0: "tokens", 1: "memory_tokens"}


def test_floats_beside_ids_are_a_mask_of_their_tokens():
    ids, mask = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 9)
    assert dynamic_dims({"ids": ids, "mask": mask}, "auto")["mask"] == {0: "batch", 1: "tokens"}
    assert dynamic_dims({"audio": torch.zeros(2, 400)}, "auto")["audio"] == {0: "batch", 1: "samples"}
    assert dynamic_dims({"ids": ids, "audio": torch.zeros(2, 400)}, "auto")["audio"] == {
        0: "batch",
        1: "samples",
    }


def test_what_tokens_see_of_each_other_varies_with_them():
    ids, pairs = torch.zeros(2, 9, dtype=torch.int64), torch.zeros(2, 1, 9, 9)
    assert dynamic_dims({"ids": ids, "mask": pairs}, "auto")["mask"] == {0: "batch", 2: "tokens", 3: "tokens"}
    keys = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    assert dynamic_dims({"ids": ids, "mask": keys}, "auto")["mask"] == {0: "batch", 3: "tokens"}
    assert dynamic_dims({"ids": ids, "pictures": torch.zeros(2, 1, 28, 28)}, "auto")["pictures"] == {
        0: "batch"
    }
    assert dynamic_dims({"pictures": torch.zeros(2, 1, 28, 28)}, "auto")["pictures"] == {0: "batch"}


class ByPosition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor, /, scale: float = 1.0) -> Tensor:
        return self.linear(x) * mask * scale


class Starred(ByPosition):
    def forward(self, *args: Tensor) -> Tensor:  # type: ignore[override]
        return self.linear(args[0])


class Keywords(ByPosition):
    def forward(self, **kwargs: Tensor) -> Tensor:  # type: ignore[override]
        return self.linear(kwargs["x"])


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_that_are_taken_by_position_only_keep_their_names(by_name: bool) -> None:
    model = ByPosition().eval()
    values = {"x": torch.randn(2, 5, 4), "mask": torch.rand(2, 5, 1)}
    given = values | {"scale": 2.0} if by_name else tuple(values.values())
    program = capture(model, given)
    assert [spec.name for spec in program.inputs] == ["x", "mask"]
    assert program.inputs[0].shape == ("batch", "tokens", 4)
    x, mask = torch.randn(3, 7, 4), torch.rand(3, 7, 1)
    torch.testing.assert_close(program(x, mask), model(x, mask, 2.0 if by_name else 1.0))
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("model", "given", "advice"),
    [
        (Starred(), (torch.randn(2, 5, 4),), "wrap the model in a module whose forward names its inputs"),
        (
            Starred(),
            {"x": torch.randn(2, 5, 4)},
            "wrap the model in a module whose forward names its inputs",
        ),
        (Keywords(), (torch.randn(2, 5, 4),), "give a mapping of names to tensors"),
        (
            nn.DataParallel(ByPosition()),
            (torch.randn(2, 5, 4),),
            r"give the model that it wraps, its \.module",
        ),
    ],
    ids=["args", "args by name", "kwargs", "data parallel"],
)
def test_a_forward_that_names_no_inputs_is_told_what_to_do(model: nn.Module, given: Any, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        capture(model, given)


def test_a_mask_varies_with_the_tokens_whichever_the_model_takes_first() -> None:
    given = {"mask": torch.ones(2, 1, 9, 9).bool(), "x": torch.randn(2, 9, 8)}
    dims = dynamic_dims(given, "auto")
    assert list(dims) == ["mask", "x"]
    assert dims["mask"] == {0: "batch", 2: "tokens", 3: "tokens"}


class Keywords(nn.Module):
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return x * others["weight"] + others.get("offset", 0)


def test_inputs_that_go_into_kwargs_are_captured_by_name():
    model = Keywords()
    program = capture(model, {"weight": torch.randn(2, 5), "x": torch.randn(2, 5)})
    assert [(spec.name, spec.shape[0]) for spec in program.inputs] == [("x", "batch"), ("weight", "batch")]
    other = {"x": torch.randn(3, 5), "weight": torch.randn(3, 5)}
    torch.testing.assert_close(program(**other), model(**other))
    assert "forward" not in vars(model)
    with pytest.raises(InputError, match="'a/b' is no name that Python can write: wrap the model"):
        capture(model, {"x": torch.randn(2, 5), "a/b": torch.randn(2, 5)})


def test_a_misspelt_input_that_nothing_reads_is_named(tiny_bert):
    ids = torch.randint(50, (2, 6))
    meant = r"'attention_msk', and reads nothing of it: did you mean 'attention_mask'\?"
    with pytest.raises(InputError, match=meant):
        capture(tiny_bert, {"input_ids": ids, "attention_msk": torch.ones_like(ids)})
    for other in ("zzz", "cache_position"):
        program = capture(tiny_bert, {"input_ids": ids, other: torch.ones_like(ids)})
        note = f"nothing reads input {other!r}: the outputs are the same without it"
        assert note in program.notes["capture"]


class Asks(nn.Module):
    """Of a keyword the sizes, the dtype, or whether it is there."""

    def __init__(self, question):
        super().__init__()
        self.question = question

    def forward(self, x, **others):
        return x * self.question(others.get("weights"))


@pytest.mark.parametrize(
    "question",
    [
        lambda w: 1 if w is None else 2,
        lambda w: w.shape[-1],
        lambda w: torch.ones((), dtype=w.dtype) / 3,
    ],
)
def test_what_a_model_asks_of_an_input_is_read(question):
    model = Asks(question)
    inputs = {"x": torch.randn(2, 5), "weights": torch.randn(2, 7, dtype=torch.float64)}
    program = capture(model, inputs, dynamic={})
    assert torch.equal(program(**inputs), model(**inputs))
    assert not program.notes.get("capture")


def test_arrays_are_inputs(tiny_bert):
    ids = torch.randint(50, (2, 6))
    program = capture(tiny_bert, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})
    assert [spec.shape for spec in program.inputs] == [("batch", "tokens")] * 2
    assert capture(tiny_bert, ids.numpy()[:, ::-1]).inputs[0].name == "input_ids"


def test_what_an_array_masks_does_not_count_as_numbers(tiny_bert):
    ids = np.ma.masked_equal(torch.randint(1, 50, (2, 6)).numpy(), 7)
    told = r"'input_ids' .*what it masks would count: fill it, and give the mask as an input"
    with pytest.raises(InputError, match=told):
        capture(tiny_bert, {"input_ids": ids})
    program = capture(tiny_bert, {"input_ids": ids.filled(1)})
    with pytest.raises(InputError, match=told):
        program(input_ids=ids)


def test_inputs_that_the_model_rejects_are_told(tiny_bert):
    told = (
        r"input_ids int64 \[2, 6\] of 7 to 5000: index out of range in self, raised in \S+ \(Embedding\(\d+, "
    )
    ids = torch.full((2, 6), 7)
    ids[0, 0] = 5000
    with pytest.raises(InputError, match=told):
        capture(tiny_bert, {"input_ids": ids})
    with pytest.raises(InputError, match=r"input_ids uint16 \[2, 6\]: "):
        capture(tiny_bert, {"input_ids": ids.to(torch.uint16)})
