"""The token axis of whole models: what lines up with it, which sizes stand for it, and what cannot lose tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from random_programs import Config, build, configs
from token_streams import call, graph_of
from torch import Tensor, nn

from tersor.ir.analyses.layers import layers
from tersor.ir.analyses.token_axis import (
    NotTokenwise,
    depends_on_inputs,
    follow,
    region_between,
    token_axis,
    token_axis_to_outputs,
)
from tersor.ir.builder import Builder
from tersor.ir.capture import capture
from tersor.ir.program import Program

aten = torch.ops.aten


@given(configs())
@settings(max_examples=15, deadline=None)
def test_padding_and_nothing_else_lines_up_with_the_stream_of_a_random_transformer(config: Config) -> None:
    program = build(config)
    stack = layers(program)
    axis = token_axis(program, stack[0].start, stack.end)
    assert len(axis.attention) == config.layers
    assert all(use.queries and use.keys for use in axis.attention)
    assert {use.dims for use in axis.sides} == ({(1,)} if config.padding else set())
    assert axis.dims[stack.end] == frozenset({1})


def test_literal_token_counts_of_a_static_image_model_are_found(tiny_vit: nn.Module) -> None:
    program = capture(tiny_vit)
    stack = layers(program)
    axis = token_axis(program, stack[0].after_attention, stack.end)
    found = {(use.user, use.argument, use.position) for use in axis.sizes}
    for node in region_between(program, stack[0].after_attention, stack.end):
        for position, size in enumerate(
            node.args[1] if node.target is torch.ops.aten.reshape.default else ()
        ):
            assert ((node, 1, position) in found) == (size == 17)


def test_rotary_tables_and_padding_of_a_decoder_are_sides(tiny_llama: nn.Module) -> None:
    program = capture(tiny_llama)
    stack = layers(program)
    axis = token_axis(program, stack[1].after_attention, stack.end)
    shapes = {tuple(map(str, use.value.meta["val"].shape))[2:] for use in axis.sides}
    assert len({use.value for use in axis.sides}) == 3, "cosines, sines, padding"
    assert shapes == {(), tuple(map(str, axis.sides[0].value.meta["val"].shape))[2:]}


class Stack(nn.Module):
    """Two encoder layers with something between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.second = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))


class Convolution(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x.transpose(1, 2)).transpose(1, 2)


class Centre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left, right = x.split(3, dim=1)
        return torch.cat([right, left], dim=1)


def stack_of(between: nn.Module) -> Program:
    torch.manual_seed(0)
    return capture(Stack(between).eval(), {"x": torch.randn(2, 6, 8)}, {"x": {0: "batch"}})


@pytest.mark.parametrize(
    ("between", "operator", "reason"),
    [
        (Convolution(8, 8, 3, padding=1), "conv1d", "no rule says"),
        (Centre(), "mean", "reduces over the tokens"),
        (Halves(), "split", "splits the tokens by position"),
    ],
)
def test_what_mixes_tokens_between_blocks_is_named(between: nn.Module, operator: str, reason: str) -> None:
    program = stack_of(between)
    start = next(n for n in program.graph.nodes if n.target is torch.ops.aten.layer_norm.default)
    end = program.output_node.args[0][0]  # type: ignore[index]
    with pytest.raises(NotTokenwise, match=reason) as caught:
        token_axis(program, start, end)  # type: ignore[arg-type]
    assert operator in str(caught.value.node.target)
    assert caught.value.node.name in str(caught.value)


def test_a_hidden_state_that_is_returned_stops_the_axis() -> None:
    class Returns(Stack):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            middle = self.first(x)
            return self.second(middle), middle

    program = capture(Returns(nn.Identity()).eval(), {"x": torch.randn(2, 6, 8)})
    norms = [n for n in program.graph.nodes if n.target is torch.ops.aten.layer_norm.default]
    with pytest.raises(NotTokenwise, match="also returns this value") as caught:
        token_axis(program, norms[0], norms[-1])
    assert caught.value.node is norms[1]


def test_a_stream_with_tokens_in_front_is_refused() -> None:
    program = capture(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False).eval(),
        {"src": torch.randn(6, 3, 8)},
    )
    stack = layers(program)
    with pytest.raises(NotTokenwise, match="its query is not"):
        token_axis(program, stack[0].start, stack.end)


def test_outputs_that_hold_tokens_are_followed(tiny_bert: nn.Module) -> None:
    program = capture(tiny_bert)
    stack = layers(program)
    hidden, pooled = program.output_node.args[0]  # type: ignore[misc]
    axis = token_axis_to_outputs(program, stack.end, prefix=1, last=0)
    assert axis.dims.get(hidden, frozenset({1})) == frozenset({1})
    assert axis.dims[pooled] == frozenset()
    with pytest.raises(NotTokenwise, match="position 0, which may be dropped"):
        token_axis_to_outputs(program, stack.end, prefix=0, last=0)


def test_inputs_that_a_value_depends_on_are_named(tiny_bert: nn.Module) -> None:
    program = capture(tiny_bert)
    assert "input_ids" in depends_on_inputs(program.output_node)
    weight = next(n for n in program.graph.nodes if n.op == "get_attr")
    assert depends_on_inputs(weight) == set()


def test_a_value_made_from_sizes_alone_depends_on_no_input(tiny_bert: nn.Module) -> None:
    program = capture(tiny_bert).edit()
    g = Builder(program, program.output_node)
    ids = next(n for n in program.graph.nodes if n.op == "placeholder")
    aten = torch.ops.aten
    assert depends_on_inputs(g.call(aten.arange.default, g.size(ids, 1))) == set()
    assert depends_on_inputs(g.call(aten.ones_like.default, ids)) == set()
    assert depends_on_inputs(g.mul(ids, 0)) == {"input_ids"}


def test_positions_that_are_sure_to_stay_may_be_read() -> None:
    for case in (call(aten.select.int, 1, 1), call(aten.select.int, 1, -1), call(aten.slice.Tensor, 1, 0, 2),
                 call(aten.slice.Tensor, 1, -1)):  # fmt: skip
        program, stream, result = graph_of(case, False)
        context, _ = follow(program, stream, None, (2, 1))
        assert context.dims(result) == frozenset()
        with pytest.raises(NotTokenwise):
            follow(program, stream, None, (1, 0))
