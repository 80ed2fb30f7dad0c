"""A model that takes one row and no more is captured with one, and its length still varies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture
from tersor.ir.errors import InputError

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
REJECTED = "is fixed at 1, the example's: the model rejects the example with more there"


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
    (note,) = program.notes["capture"]
    assert note.startswith(f"dim 0 of 'ids' and of 'scale' {REJECTED}")
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
        assert "is fixed at 1, the example's: the model rejects" in program.notes["capture"][0]
        inputs = {"input_ids": IDS[:1], **more}
        torch.testing.assert_close(program(**inputs)["logits"], classifier(**inputs).logits)


def test_it_is_optimized_with_calibration_of_one_row(classifier: nn.Module) -> None:
    inputs = {"input_ids": IDS[:1]}
    fast = tersor.optimize_model(classifier, passes=[], target="onnx", calibration=inputs)
    torch.testing.assert_close(fast(**inputs).logits, classifier(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert REJECTED in fast.report.notes[0]


def test_a_batch_that_was_named_is_not_fixed() -> None:
    with pytest.raises(
        InputError, match=r"one text, please.*rows of the example were repeated, as dynamic lets"
    ):
        capture(OneText().eval(), {"ids": IDS[:1]}, {"ids": {0: "batch", 1: "tokens"}})
    program = capture(OneText().eval(), {"ids": IDS[:1]}, {"ids": {1: "tokens"}})
    assert program.inputs[0].shape == (1, "tokens")


def test_what_the_model_does_not_take_at_all_is_told_as_it_was_given() -> None:
    with pytest.raises(InputError, match=r"ids int64 \[2, 9\].*one text, please"):
        capture(OneText().eval(), {"ids": IDS})
    with pytest.raises(InputError, match=r"ids float32 \[1, 9\]"):
        capture(OneText().eval(), {"ids": IDS[:1].float()})


def test_what_is_suggested_is_cut_to_a_row_where_no_batch_was_named(classifier: nn.Module) -> None:
    for dynamic in ({}, {"input_ids": {1: "tokens"}, "attention_mask": {1: "tokens"}}):
        program = capture(classifier, dynamic=dynamic)
        assert {spec.shape[0] for spec in program.inputs} == {1}
    with pytest.raises(InputError, match="Cannot handle batch sizes > 1"):
        capture(classifier, dynamic={"input_ids": {0: "batch"}, "attention_mask": {0: "batch"}})


def test_a_call_that_was_rejected_leaves_no_mark() -> None:
    class Keeping(OneText):
        def __init__(self) -> None:
            super().__init__()
            self.share: float | None = None

        def forward(self, ids: Tensor) -> Tensor:
            if self.share is None:
                self.share = 1.0 / ids.shape[0]
            return super().forward(ids) * self.share

    torch.manual_seed(0)
    model = Keeping().eval()
    program = capture(model, {"ids": IDS[:1]})
    torch.testing.assert_close(program(IDS[:1]), model(IDS[:1]))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor, temperature: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x if bias is None else x + bias.view(8)
        return (self.linear(x) / temperature.view([])).softmax(-1)


@pytest.mark.parametrize("dynamic", ["auto", {"x": {0: "batch", 1: "tokens"}}], ids=["auto", "named"])
@pytest.mark.parametrize("biased", [False, True])
def test_what_has_no_batch_is_not_repeated_beside_one_row(biased: bool, dynamic: Any) -> None:
    model = Scaled().eval()
    rest = {"temperature": torch.full((1,), 2.0)} | ({"bias": torch.randn(1, 8)} if biased else {})
    program = capture(model, {"x": torch.randn(1, 6, 8), **rest}, dynamic)
    assert [spec.shape[0] for spec in program.inputs] == ["batch", 1, 1][: 2 + biased]
    x = torch.randn(3, 4, 8)
    torch.testing.assert_close(program(x, **rest), model(x, **rest))


class TokensFirst(nn.Module):
    """In PyTorch's default layout, behind a wrapper of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0]).squeeze()


@pytest.mark.parametrize("shape", [(1, 3, 8), (5, 1, 8)])
def test_only_the_dim_that_is_apart_is_fixed(shape: tuple[int, ...]) -> None:
    model, x = TokensFirst().eval(), torch.randn(shape)
    program = capture(model, x)
    torch.testing.assert_close(program(x), model(x))
    rows = x.shape[1]
    assert (program.inputs[0].shape[1] == 1) == (rows == 1)
    longer = torch.randn(7, rows, 8)
    torch.testing.assert_close(program(longer), model(longer))


FIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "len": lambda x: x.reshape(len(x), -1),
    "rows one by one": lambda x: torch.stack([row.softmax(-1) for row in x]),
}


@pytest.mark.parametrize("name", FIXING)
def test_a_program_takes_its_example_where_the_batch_is_fixed(name: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return FIXING[name](x * 2)

    x = torch.randn(1, 5, 8)
    program = capture(Model(), x)
    assert program.inputs[0].shape == (1, "tokens", 8)
    torch.testing.assert_close(program(x), Model()(x))
    assert (
        "dim 0 of 'x' is fixed at 1, the example's: a number is made of it at" in program.notes["capture"][0]
    )


class Lazy(nn.Module):
    """Builds a buffer for as many rows as its first call has."""

    def __init__(self, how: str, one_only: bool) -> None:
        super().__init__()
        self.how, self.one_only, self.linear = how, one_only, nn.Linear(8, 8)
        if how != "registered by the call":
            self.register_buffer("state", None if how == "None" else torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "state", None) is None or self.state.numel() == 0:
            state = torch.ones(x.shape[0], 1, 8) / x.shape[0]
            if self.how == "registered by the call":
                self.register_buffer("state", state, persistent=False)
            else:
                self.state = state
        if self.one_only and x.shape[0] > 1:
            raise ValueError("one row, please")
        return self.linear(x + self.state)


@pytest.mark.parametrize("one_only", [False, True])
@pytest.mark.parametrize("how", ["None", "empty", "registered by the call"])
def test_buffers_of_a_call_with_more_rows_are_gone(how: str, one_only: bool) -> None:
    model, x = Lazy(how, one_only).eval(), torch.randn(1, 5, 8)

    def shapes() -> dict[str, Any]:
        return {n: buffer if buffer is None else buffer.shape for n, buffer in model._buffers.items()}

    before = shapes()
    program = capture(model, x)
    assert shapes() == before
    assert program(x).shape == x.shape
    torch.testing.assert_close(program(x), model(x))


class Pairs(nn.Module):
    """Texts and pictures, as many of each as there are, compared with one another."""

    def forward(self, texts: Tensor, pictures: Tensor) -> Tensor:
        return texts.softmax(-1) @ pictures.softmax(-1).T


@pytest.mark.parametrize(("texts", "pictures"), [(1, 2), (2, 1), (1, 3), (1, 1)])
def test_rows_of_two_inputs_are_not_tied_by_being_repeated(texts: int, pictures: int) -> None:
    example = {"texts": torch.randn(texts, 8), "pictures": torch.randn(pictures, 8)}
    dynamic = {"texts": {0: "texts"}, "pictures": {0: "pictures"}}
    for program in (capture(Pairs(), example), capture(Pairs(), example, dynamic)):
        torch.testing.assert_close(program(**example), Pairs()(**example))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.layer(x, state)[0]


def test_all_dims_of_one_name_are_repeated() -> None:
    model = Recurrent().eval()
    program = capture(
        model, {"x": torch.randn(1, 5, 8), "state": torch.zeros(1, 1, 8)}, {"x": {0: "b"}, "state": {1: "b"}}
    )
    x, state = torch.randn(3, 5, 8), torch.randn(1, 3, 8)
    torch.testing.assert_close(program(x, state), model(x, state), atol=1e-5, rtol=1e-5)


def test_a_number_before_the_rows_has_no_batch() -> None:
    class Timed(nn.Module):
        def forward(self, step: Tensor, x: Tensor) -> Tensor:
            return x * step.view(1, 1, 1)

    program = capture(Timed(), {"step": torch.ones(1), "x": torch.randn(1, 5, 8)})
    assert [spec.shape for spec in program.inputs] == [(1,), ("batch", "tokens", 8)]


class Grown(nn.Module):
    """Makes a parameter for as many rows as its first call has."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        if registered:
            self.register_parameter("state", None)
        else:
            self.state = None

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        if self.state is None:
            self.state = nn.Parameter(torch.ones(x.shape[0], 1, 8) / x.shape[0])
        return (self.linear(x) + self.state) * scale.view(1)


@pytest.mark.parametrize("registered", [False, True])
def test_parameters_of_a_call_are_gone(registered: bool) -> None:
    model, x, scale = Grown(registered).eval(), torch.randn(1, 5, 8), torch.ones(1)
    program = capture(model, {"x": x, "scale": scale})
    assert model.state is None
    assert "state" not in model.state_dict()
    torch.testing.assert_close(program(x, scale), model(x, scale))


def test_both_dims_of_a_square_are_repeated() -> None:
    class Graph(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return edges @ x.softmax(-1)

    named = {"x": {0: "n"}, "edges": {0: "n", 1: "n"}}
    program = capture(Graph(), {"x": torch.randn(1, 8), "edges": torch.ones(1, 1)}, named)
    x, edges = torch.randn(4, 8), torch.randn(4, 4)
    torch.testing.assert_close(program(x, edges), Graph()(x, edges))


def test_a_mask_beside_tokens_first_has_rows_first() -> None:
    layer = nn.MultiheadAttention(8, 2).eval()

    def inputs(rows: int, tokens: int) -> dict[str, Tensor]:
        x = torch.randn(tokens, rows, 8)
        return {
            "query": x,
            "key": x,
            "value": x,
            "key_padding_mask": torch.arange(tokens).expand(rows, -1) > 2,
        }

    program = capture(layer, inputs(1, 5))
    more = inputs(3, 7)
    torch.testing.assert_close(program(**more)[0], layer(**more)[0], atol=1e-5, rtol=1e-5)
