"""Tokens that must stay are read off the graph, not off a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.analyses.layers import layers
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.contract import Refusal
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.protect import Protection, find_protected, holds_token_ids

F = nn.functional
TEXT: dict[str, Any] = dict(
    vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
)


def protection(program: Program) -> Protection:
    return find_protected(program, layers(program))


@pytest.mark.parametrize(
    ("kind", "prefix", "last", "reason"),
    [
        ("vit", 1, 0, "constants of the model"),
        ("registers", 3, 0, "the first 3"),
        ("bert", 1, 1, "delimiters"),
        ("llama", 1, 1, "delimiters"),
    ],
)
def test_class_tokens_registers_and_delimiters_are_found(
    captured: Callable[[str], Program], kind: str, prefix: int, last: int, reason: str
) -> None:
    found = protection(captured(kind))
    assert (found.prefix, found.last) == (prefix, last)
    assert any(reason in text for text in found.reasons)


class Reads(nn.Module):
    """An encoder whose result is read as told."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.encoder(x))


@pytest.mark.parametrize(
    ("read", "prefix", "last"),
    [
        (lambda x: x, 0, 0),
        (lambda x: x.mean(1), 0, 0),
        (lambda x: x[:, 0], 1, 0),
        (lambda x: x[:, 1], 2, 0),
        (lambda x: x[:, -1], 0, 1),
        (lambda x: x[:, -2:], 0, 2),
        (lambda x: x[:, 1:].mean(1), 1, 0),
        (lambda x: x[:, :2].mean(1), 2, 0),
        (lambda x: x[:, :7], 0, 1),
        (lambda x: x[:, 0] + x[:, -1], 1, 1),
        (lambda x: x[:, :, 3], 0, 0),
        # Every operator that takes entries of the tokens, wherever they lie.
        (lambda x: x.index_select(1, torch.tensor([1])), 2, 0),
        (lambda x: x[:, torch.tensor([0, 2])], 3, 0),
        (lambda x: x[:, torch.tensor([-1])], 0, 1),
        (lambda x: x[torch.arange(x.shape[0]), 0], 1, 0),
        (lambda x: x.gather(1, torch.ones(1, 1, 8, dtype=torch.int64).expand(x.shape[0], -1, -1)), 2, 0),
        (lambda x: x.unbind(1)[1], 2, 0),
        (lambda x: x.narrow(1, 0, 2), 2, 0),
        (lambda x: x.split([2, 6], dim=1)[1].mean(1), 2, 0),
        (lambda x: x.reshape(x.shape[0], -1)[:, :16], 2, 0),
        (lambda x: x.chunk(4, dim=1)[-1], 0, 2),
        (lambda x: x.transpose(1, 2)[..., 0], 1, 0),
        (lambda x: x.transpose(0, 1)[0], 1, 0),
        (lambda x: x.unflatten(2, (2, 4))[:, 1], 2, 0),
        (lambda x: x.unflatten(2, (2, 4)).transpose(1, 2)[:, :, 1], 2, 0),
        (lambda x: x[:, 1:][:, 1:].mean(1), 2, 0),
        (lambda x: x[:, 1:][:, 0], 2, 0),
        (lambda x: x.reshape(-1, 8).relu().reshape(x.shape)[:, 1], 2, 0),
    ],
)
def test_positions_that_the_head_reads_are_protected(
    read: Callable[[Tensor], Tensor], prefix: int, last: int
) -> None:
    program = capture(Reads(read).eval(), {"x": torch.randn(2, 8, 8)}, {"x": {0: "batch"}})
    found = protection(program)
    assert (found.prefix, found.last) == (prefix, last)


def assigned(x: Tensor, own: Tensor, count: int) -> Tensor:
    x = F.pad(x, (0, 0, 0, 0)).clone()
    if count == 1:
        x[:, 0] = own[:, 0]
    else:
        x[:, :count] = own
    return x


class Joined(nn.Module):
    """An encoder that has tokens of its own, put in as told, and returns all tokens."""

    def __init__(self, put: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.own, self.put, self.inner = nn.Parameter(torch.randn(1, 2, 8)), put, nn.Linear(8, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.put(self.inner(x), self.own.expand(x.shape[0], -1, -1)))


@pytest.mark.parametrize(
    ("put", "prefix", "last"),
    [
        (lambda x, own: assigned(x, own, 1), 1, 0),
        (lambda x, own: assigned(x, own, 2), 2, 0),
        (lambda x, own: torch.cat([own, x], 1), 2, 0),
        (lambda x, own: torch.cat([own[:, :1], own[:, 1:], x, own], 1), 2, 2),
        (lambda x, own: F.pad(x, (0, 0, 1, 0)) + F.pad(own[:, :1], (0, 0, 0, x.shape[1])), 1, 0),
        (lambda x, own: F.pad(x, (0, 0, 0, 2)) + F.pad(own, (0, 0, x.shape[1], 0)), 0, 2),
    ],
)
def test_tokens_of_the_models_own_at_the_ends_are_protected(
    put: Callable[[Tensor, Tensor], Tensor], prefix: int, last: int
) -> None:
    found = protection(capture(Joined(put).eval(), torch.randn(2, 7, 8)))
    assert (found.prefix, found.last) == (prefix, last)


def test_tokens_of_the_models_own_between_others_are_refused() -> None:
    program = capture(
        Joined(lambda x, own: torch.cat([x[:, :3], own, x[:, 3:]], 1)).eval(), torch.randn(2, 7, 8)
    )
    refusal = parse_spec("token-drop:method=norm,keep=0.5,layers=0").legality(program)
    assert isinstance(refusal, Refusal)
    assert "between those of its input" in refusal.reason


def test_constants_behind_the_input_are_protected_at_the_end() -> None:
    class Prompted(Reads):
        def __init__(self) -> None:
            super().__init__(lambda x: x)
            self.prompt = nn.Parameter(torch.randn(1, 3, 8))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.cat([x, self.prompt.expand(x.shape[0], -1, -1)], dim=1))

    found = protection(capture(Prompted().eval(), {"x": torch.randn(2, 8, 8)}))
    assert (found.prefix, found.last) == (0, 3)


class Looked(nn.Module):
    """An encoder of continuous features; integers meet the stream as told."""

    def __init__(self, join: Callable[[Looked, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.table = nn.Embedding(32, 8)
        self.join = join

    def forward(self, x: Tensor, numbers: Tensor) -> Tensor:
        return self.encoder(self.join(self, x, numbers))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("join", "ids"),
    [
        (lambda m, x, n: x + m.table(n), True),
        (lambda m, x, n: x + m.table.weight[n], True),
        (lambda m, x, n: m.table(torch.where(n > 3, n * 7 % 32, n)) + x, True),
        (lambda m, x, n: x * n[..., None], False),
        (lambda m, x, n: x.masked_fill((n == 0)[..., None], 0.0), False),
        (lambda m, x, n: x * n[..., None] + m.table(torch.arange(x.shape[1])), False),
        (lambda m, x, n: x + m.table(n.cumsum(1) * n.ne(0)), False),
    ],
)
def test_tokens_are_ids_where_they_are_looked_up_and_not_where_a_mask_meets_them(
    join: Callable[[Looked, Tensor, Tensor], Tensor], ids: bool
) -> None:
    example = {"x": torch.randn(2, 6, 8), "numbers": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}
    program = capture(Looked(join).eval(), example)
    assert holds_token_ids(program, layers(program)) == ids
    found = protection(program)
    assert (found.prefix, found.last) == ((1, 1) if ids else (0, 0))
    refusal = parse_spec("token-drop:method=cls-attention").legality(program)
    assert isinstance(refusal, list) == ids
    if not ids:
        assert "no class token" in str(refusal)


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda x: x[:, ::2], "one token in 2"),
        (lambda x: x.reshape(x.shape[0], -1)[:, :12], "some entries of a token"),
        (lambda x: x[torch.arange(x.shape[0]), x[:, :, 0].argmax(-1)], "computed from x"),
        (lambda x: x.flip(1)[:, 0], "was not followed"),
        (lambda x: x.roll(1, 1)[:, 0], "was not followed"),
        (lambda x: x.cumsum(1)[:, -1], "was not followed"),
    ],
)
def test_positions_that_are_not_known_are_refused(read: Callable[[Tensor], Tensor], reason: str) -> None:
    program = capture(Reads(read).eval(), {"x": torch.randn(2, 8, 8)}, {"x": {0: "batch"}})
    refusal = parse_spec("token-drop:method=random").legality(program)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason
    assert program.find(refusal.node)


@pytest.mark.parametrize("read", [lambda x: x[:, 1], lambda x: x[:, 2:].mean(1), lambda x: x.select(1, -2)])
def test_positions_are_found_where_the_length_is_free(read: Callable[[Tensor], Tensor]) -> None:
    program = capture(Reads(read).eval(), {"x": torch.randn(2, 9, 8)})
    found = protection(program)
    assert (found.prefix, found.last) in ((2, 0), (0, 2))


def decoder_classifier() -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers as t

    config = t.LlamaConfig(**TEXT, num_key_value_heads=2, pad_token_id=0, num_labels=3)
    return t.LlamaForSequenceClassification(config), {"input_ids": torch.randint(3, 90, (2, 12))}


def clip_text() -> tuple[nn.Module, dict[str, Tensor]]:
    import transformers as t

    ids = torch.randint(3, 90, (2, 12))
    return t.CLIPTextModel(t.CLIPTextConfig(**TEXT, eos_token_id=99)), {"input_ids": ids}


@pytest.mark.parametrize("make", [decoder_classifier, clip_text])
def test_a_token_that_the_numbers_of_the_input_place_is_why_its_model_is_refused(
    make: Callable[[], tuple[nn.Module, dict[str, Tensor]]],
) -> None:
    model, example = make()
    program = capture(model.eval(), example)
    stack = layers(program)
    assert len(stack) == 3
    assert not stack.outside
    refusal = parse_spec("token-drop:method=norm").legality(program)
    assert isinstance(refusal, Refusal)
    assert "positions computed from input_ids" in refusal.reason
    assert program.find(refusal.node)
