"""What ``capture`` promises about inputs, dimensions, the model it is given, and its errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.errors import CaptureError, InputError
from tersor.passes.pipeline import run


class Tokens(nn.Module):
    """``[batch, tokens, 8]`` through a linear layer, a cumulative mean and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: float = 1.0, extra: Tensor | None = None) -> dict[str, Tensor]:
        y = self.drop(self.proj(x)) * scale
        return {"out": y if extra is None else y + extra, "mean": y.mean(1)}


def test_batch_and_length_stay_free_and_outputs_keep_their_structure():
    model = Tokens()
    program = capture(model, {"x": torch.randn(2, 5, 8)})
    assert program.inputs[0].shape == ("batch", "tokens", 8)
    out = program(torch.randn(4, 11, 8))
    assert set(out) == {"out", "mean"}
    assert out["out"].shape == (4, 11, 8)
    assert program.facts.deviation == 0.0


def test_a_batch_of_one_is_repeated_so_that_it_can_vary():
    program = capture(Tokens(), {"x": torch.randn(1, 5, 8)})
    assert program.inputs[0].shape[0] == "batch"
    assert program(torch.randn(3, 5, 8))["out"].shape[0] == 3


def test_a_length_of_one_is_repeated_so_that_it_can_vary():
    program = capture(Tokens(), {"x": torch.randn(1, 1, 8), "extra": torch.randn(1, 1, 8)})
    assert [spec.shape for spec in program.inputs] == [("batch", "tokens", 8)] * 2
    assert program(torch.randn(3, 7, 8), torch.randn(3, 7, 8))["out"].shape == (3, 7, 8)
    assert not program.notes


class Conditioned(nn.Module):
    """Tokens and one number a row, which broadcasts over them."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return x + time[:, :, None] * nn.functional.linear(time, torch.ones(1, 1)).mean()


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_a_size_of_one_that_the_model_insists_on_stays_and_is_noted(tokens):
    model = Conditioned()
    program = capture(model, {"x": torch.randn(2, tokens, 8), "time": torch.randn(2, 1)})
    assert [spec.shape for spec in program.inputs] == [("batch", "tokens", 8), ("batch", 1)]
    assert ["dim 1 of 'time' is fixed at 1" in note for note in program.notes["capture"]] == [True]
    x, time = torch.randn(3, 9, 8), torch.randn(3, 1)
    torch.testing.assert_close(program(x, time), model(x, time))
    assert str(run(program, [])[1]).endswith(program.notes["capture"][0])
    assert run(program, [])[1].to_json()["notes"] == program.notes["capture"]


@pytest.mark.parametrize(
    "given", [(torch.randn(2, 5, 8),), torch.randn(2, 5, 8), [torch.randn(2, 5, 8), 1.0]]
)
def test_inputs_may_be_positional(given):
    assert [spec.name for spec in capture(Tokens(), given).inputs] == ["x"]


def test_arguments_that_are_no_tensors_become_constants():
    model = Tokens().eval()
    program = capture(model, {"x": torch.randn(2, 5, 8), "scale": 3.0, "extra": None})
    x = torch.randn(2, 4, 8)
    assert torch.equal(program(x)["out"], model(x, scale=3.0)["out"])


def test_the_model_is_left_as_it_was_found(tiny_llama):
    tiny_llama.train()
    tiny_llama.model.layers[0].eval()
    modes = [m.training for m in tiny_llama.modules()]
    settings = dict(vars(tiny_llama.config))
    fastpath = torch.backends.mha.get_fastpath_enabled()
    before = {k: v.clone() for k, v in tiny_llama.state_dict().items()}
    capture(tiny_llama)
    assert [m.training for m in tiny_llama.modules()] == modes
    assert vars(tiny_llama.config) == settings
    assert torch.backends.mha.get_fastpath_enabled() == fastpath
    assert all(torch.equal(v, before[k]) for k, v in tiny_llama.state_dict().items())
    assert all(p.requires_grad for p in tiny_llama.parameters())


def test_weights_are_shared_with_the_model(tiny_bert):
    program = capture(tiny_bert)
    held = {tensor.data_ptr() for tensor in program.weights.values()}
    assert tiny_bert.encoder.layer[0].attention.self.query.weight.data_ptr() in held


def test_named_dims_are_the_only_ones_that_vary():
    program = capture(Tokens(), {"x": torch.randn(2, 5, 8)}, dynamic={"x": {1: "length"}})
    assert program.inputs[0].shape == (2, "length", 8)


def test_an_empty_mapping_fixes_every_size():
    program = capture(Tokens(), {"x": torch.randn(1, 5, 8)}, dynamic={})
    assert program.inputs[0].shape == (1, 5, 8)


def test_a_named_dim_that_the_model_fixes_is_an_error():
    with pytest.raises(
        CaptureError, match=r"dim 2 of 'x' was to vary as 'width' but the model fixes it to 8"
    ):
        capture(Tokens(), {"x": torch.randn(2, 5, 8)}, dynamic={"x": {2: "width"}})


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "batch"}}, "names input 'y'"),
        ({"x": {3: "batch"}}, "names dim 3"),
        ("all", 'pass "auto"'),
        *(({"x": {0: label}}, "give it a name of letters") for label in ("", None, 3, "batch*2", "for")),
    ],
)
def test_a_wrong_dynamic_is_named(dynamic, message):
    with pytest.raises(InputError, match=message):
        capture(Tokens(), {"x": torch.randn(2, 5, 8)}, dynamic=dynamic)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "does not say what inputs it takes"),
        ({"z": torch.zeros(1)}, "has no input 'z'"),
        ({"scale": 2.0}, "holds no tensor"),
        ({"x": [torch.zeros(2, 5, 8)]}, "wrap the model"),
        ({"x": torch.randn(2, 5, 9)}, "rejects the example inputs"),
        ((torch.zeros(1),) * 4, "4 inputs given"),
        (7, "pass a mapping"),
        ({"x": [[1.0]]}, "'x' is a list; .* wrap the model"),
        ({"x": np.array([["a"]])}, "'x' is an array of which no tensor can be made"),
    ],
)
def test_inputs_that_do_not_fit_are_named(given, message):
    with pytest.raises(InputError, match=message):
        capture(Tokens(), given)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branch()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_control_flow_on_values_names_module_line_and_mend():
    with pytest.raises(CaptureError) as caught:
        capture(Branches(), {"x": torch.randn(2, 5)})
    text = str(caught.value)
    assert "in inner (Branch)" in text
    assert "test_frontend.py" in text
    assert "x.sum() > 0" in text
    assert "torch.where" in text


def test_a_result_of_chance_is_refused():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(CaptureError, match="differs from the model"):
        capture(Noisy(), {"x": torch.randn(2, 5)})


def test_an_output_that_is_no_tensor_is_refused():
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x, 3

    with pytest.raises(CaptureError, match="neither a tensor"):
        capture(Counts(), {"x": torch.randn(2, 5)})


class Writes(nn.Module):
    """In-place writes through views that are read afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        left, right = y[:, :2], y[:, 2:]
        left += 1
        right[:, 0] = left[:, 1]
        y.mul_(2)
        return y + left.sum()


def test_writes_through_views_are_made_functional():
    model = Writes()
    program = capture(model, {"x": torch.randn(2, 6)})
    assert not any(
        getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in program.graph.nodes
    )
    x = torch.randn(3, 6)
    torch.testing.assert_close(program(x), model(x))


def test_an_image_keeps_its_height_and_width(tiny_vit):
    assert capture(tiny_vit).inputs[0].shape == ("batch", 3, 32, 32)


def test_a_position_table_bounds_the_length(tiny_bert):
    assert capture(tiny_bert).ranges["tokens"] == (1, 64)


def test_a_decoder_needs_no_positions_and_returns_no_cache(tiny_llama):
    program = capture(tiny_llama)
    assert [spec.name for spec in program.inputs] == ["input_ids", "attention_mask"]
    assert [spec.name for spec in program.outputs] == ["logits"]


def test_explicit_positions_become_an_input(tiny_llama):
    ids = torch.randint(100, (2, 6))
    positions = torch.arange(6).expand(2, 6)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    program = capture(tiny_llama, given)
    assert [s.shape for s in program.inputs] == [("batch", "tokens")] * 3
    shifted = {**given, "position_ids": positions + 3}
    torch.testing.assert_close(program(**shifted).logits, tiny_llama(**shifted, use_cache=False).logits)


def test_tokens_before_batch_keep_their_names():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1).eval()
    program = capture(encoder)
    assert program.inputs[0].shape == ("tokens", "batch", 16)
    assert sum(is_dialect(n, "attention") for n in program.graph.nodes) == 1


class Encodes(nn.Module):
    """Two layers of PyTorch's encoder under a mask and padding, tokens first unless told otherwise."""

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, src: Tensor, padding: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.encoder(src, mask=mask, src_key_padding_mask=padding)


def test_dims_are_named_by_what_attention_does_with_them():
    model = Encodes().eval()
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    program = capture(model, {"src": torch.randn(7, 2, 16), "padding": padding})
    assert [spec.shape for spec in program.inputs] == [("tokens", "batch", 16), ("batch", "tokens")]
    assert program.outputs[0].shape == ("tokens", "batch", 16)
    other = torch.randn(5, 3, 16), torch.zeros(3, 5, dtype=torch.bool)
    torch.testing.assert_close(program(*other), model(*other))
    with pytest.raises(InputError, match="tokens = 6 as in 'src'"):
        program(torch.randn(6, 3, 16), torch.zeros(3, 5, dtype=torch.bool))


def test_a_mask_given_to_an_encoder_is_not_asked_for_its_values():
    from torch.nn.modules import transformer

    detect = transformer._detect_is_causal_mask
    model = Encodes(batch_first=True).eval()
    example = {
        "src": torch.randn(2, 7, 16),
        "padding": torch.zeros(2, 7),
        "mask": nn.Transformer.generate_square_subsequent_mask(7),
    }
    program = capture(model, example)
    torch.testing.assert_close(program(**example), model(**example))
    every = {**example, "mask": torch.zeros(7, 7)}
    torch.testing.assert_close(program(**every), model(**every))
    assert transformer._detect_is_causal_mask is detect


def test_dims_that_are_one_to_the_model_need_one_name():
    def twice(x: Tensor) -> Tensor:
        return x + x.transpose(1, 2)

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return twice(x)

    example, dims = {"x": torch.randn(2, 6, 6)}, {0: "batch", 1: "height"}
    with pytest.raises(
        CaptureError, match="dim 2 of 'x' was to vary as 'width', but to the model it is 'height'"
    ):
        capture(Square(), example, {"x": {**dims, 2: "width"}})
    assert capture(Square(), example, {"x": {**dims, 2: "height"}}).inputs[0].shape == (
        "batch",
        "height",
        "height",
    )


@pytest.mark.parametrize("dims", [["batch", "tokens"], {"batch": 0}, {True: "batch"}], ids=str)
def test_dims_are_named_by_their_place(dims):
    with pytest.raises(InputError, match="name dims by their place"):
        capture(Tokens(), {"x": torch.randn(2, 5, 8)}, {"x": dims})


def test_a_sample_that_the_model_does_not_take_is_named():
    class Few(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids)

    example = {"input_ids": torch.tensor([[1, 2, 3]])}
    wrong = {"input_ids": torch.tensor([[1, 2, 5]])}
    with pytest.raises(InputError, match="does not take sample 1: index out of range"):
        capture(Few(), example, samples=lambda program: [program.bind(**example), wrong])
