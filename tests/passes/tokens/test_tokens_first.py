"""Streams that lie ``[tokens, batch, width]`` are reduced as those that lie batch first."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tersor.ir.analyses.layers import layers
from tersor.ir.capture import capture
from tersor.ir.errors import InputError
from tersor.ir.program import Program
from tersor.ir.verifier import verify
from tersor.passes.contract import Refusal
from tersor.passes.pipeline import run
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.protect import find_protected

Drop = Callable[[Program, str], Program]


class Encodes(nn.Module):
    """PyTorch's encoder with padding; the same weights whichever way its stream lies."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)  # type: ignore[no-any-return]


def inputs(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """``x [batch, tokens, 16]`` and padding whose last row is a third short."""
    generator = torch.Generator().manual_seed(tokens)
    padding = torch.zeros(batch, tokens, dtype=torch.bool)
    padding[-1, tokens - tokens // 3 :] = True
    return torch.randn(batch, tokens, 16, generator=generator), padding


@cache
def both(batch: int = 2, tokens: int = 11) -> tuple[Program, Program]:
    """The encoder batch first and tokens first."""
    x, padding = inputs(batch, tokens)
    first = capture(Encodes(True).eval(), {"x": x, "padding": padding})
    return first, capture(Encodes(False).eval(), {"x": x.transpose(0, 1), "padding": padding})


def test_the_analysis_sees_which_way_the_stream_lies() -> None:
    assert [layers(program).token_dim for program in both()] == [1, 0]


def test_an_example_whose_rows_are_as_many_as_its_tokens_is_captured_for_such_inputs_only() -> None:
    """Its dims were named by place, and one name may not stand for two sizes."""
    square = both(4, 4)[1]
    with pytest.raises(InputError):
        square.bind(x=torch.zeros(5, 3, 16), padding=torch.zeros(3, 5, dtype=torch.bool))


@pytest.mark.parametrize(
    "method",
    ["zero-tprune", "tome", "norm", "pool", "random", "received-attention", "hired,prefix=1",
     "cls-attention,prefix=1,fuse=true"],
)  # fmt: skip
def test_the_same_tokens_are_reduced_whichever_way_the_stream_lies(dropped: Drop, method: str) -> None:
    spec = f"token-drop:method={method},keep=0.6,layers=0+1"
    one, other = (dropped(program, spec) for program in both())
    verify(other)
    for sizes in ((2, 11), (3, 6)):
        x, padding = inputs(*sizes)
        want = one.run({"x": x, "padding": padding})[0]
        got = other.run({"x": x.transpose(0, 1), "padding": padding})[0].transpose(0, 1)
        assert torch.allclose(got[~padding], want[~padding], atol=1e-5)


def test_fewer_tokens_pass_through_the_blocks() -> None:
    before, after = (run(program, ["token-drop:keep=0.5,layers=0"])[1].after for program in both())
    assert before is not None
    assert after is not None
    assert after.flops == pytest.approx(before.flops, rel=0.01)


def test_a_second_pass_acts_behind_the_first(dropped: Drop) -> None:
    spec = "token-drop:method=received-attention,proportional=false"
    program = both()[1]
    one = dropped(program, f"{spec},keep=0.7+0.6,layers=0+1")
    first = dropped(program, f"{spec},keep=0.7,layers=0")
    assert len(layers(first)) == 3
    twice = dropped(first, f"{spec},keep=0.6")
    verify(twice)
    sites = parse_spec(f"{spec},keep=0.6").legality(first)
    assert isinstance(sites, list)
    assert [site.facts["layer"] for site in sites] == [1]
    assert torch.allclose(one.run(one.example_inputs)[0], twice.run(one.example_inputs)[0], atol=1e-5)


def test_compact_outputs_that_lie_tokens_first_are_refused() -> None:
    refusal = parse_spec("token-drop:method=norm,restore=compact").legality(both()[1])
    assert isinstance(refusal, Refusal)
    assert "not at dim 1 of [batch, tokens, ...]" in refusal.reason


class Turned(nn.Module):
    """A class token ahead of the others, blocks tokens first, the class token read batch first: CLIP's image tower."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=False, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.encoder(x.permute(1, 0, 2)).permute(1, 0, 2)
        return x, x[:, 0]


def test_a_stream_that_is_turned_for_its_blocks_keeps_its_class_token(dropped: Drop) -> None:
    program = capture(Turned().eval(), {"x": torch.randn(2, 8, 16)})
    stack = layers(program)
    found = find_protected(program, stack)
    assert (stack.token_dim, found.prefix, found.last) == (0, 1, 0)
    assert any("constants of the model" in reason for reason in found.reasons)
    scattered = dropped(program, "token-drop:method=cls-attention,keep=0.5,layers=0")
    compact = dropped(program, "token-drop:method=cls-attention,keep=0.5,layers=0,restore=compact")
    x = torch.randn(3, 12, 16)
    hidden, pooled = scattered.run({"x": x})
    kept, read, index = compact.run({"x": x})
    assert (index[:, 0] == 0).all()
    assert kept.shape == (3, 7, 16)
    assert torch.allclose(kept, torch.take_along_dim(hidden, index[:, :, None], 1), atol=1e-6)
    assert torch.allclose(read, pooled, atol=1e-6)
    assert not torch.allclose(pooled, program.run({"x": x})[1], atol=1e-4)


@pytest.mark.parametrize(
    ("read", "prefix", "last"),
    [(lambda x: x[0], 1, 0), (lambda x: x[-2:], 0, 2), (lambda x: x.transpose(0, 1)[:, 0], 1, 0), (lambda x: x, 0, 0)],
)  # fmt: skip
def test_positions_read_off_a_stream_tokens_first_are_protected(
    read: Callable[[Tensor], Tensor], prefix: int, last: int
) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=False)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return read(self.encoder(x))

    program = capture(Reads().eval(), {"x": torch.randn(9, 2, 16)})
    found = find_protected(program, layers(program))
    assert (found.prefix, found.last) == (prefix, last)
