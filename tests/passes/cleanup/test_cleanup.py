"""Every clean-up pass: the text it changes, and the outputs it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from random_programs import Config, build, configs, inputs_of
from torch import fx

from tersor.ir.boundary import spec_of
from tersor.ir.builder import Builder
from tersor.ir.program import Program
from tersor.ir.shapes import SymbolTable
from tersor.ir.structure import Structure
from tersor.ir.text import program_text
from tersor.ir.verifier import verify
from tersor.passes.cleanup.cleanup import Cleanup, parts
from tersor.passes.cleanup.common_subexpressions import CommonSubexpressions
from tersor.passes.cleanup.constant_folding import ConstantFolding
from tersor.passes.cleanup.dead_code import DeadCode
from tersor.passes.cleanup.identities import Identities
from tersor.passes.contract import Pass, Promise

aten = torch.ops.aten
Body = Callable[[Builder, fx.Node], fx.Node | tuple[fx.Node, ...]]


def program_of(body: Body) -> Program:
    """A Program of one input ``x``, f32 ``[batch, tokens, 4]``, that computes ``body``."""
    table = SymbolTable()
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = table.tensor([table.symbol("batch", 2), table.symbol("tokens", 3), 4], torch.float32)
    end = graph.output(())
    inputs = (spec_of(x, "x", table.names),)
    example = {"x": torch.arange(24.0).reshape(2, 3, 4)}
    program = Program(graph, {}, inputs, (), Structure("tuple"), table.names, {}, example)
    results = body(Builder(program, end), x)
    results = results if isinstance(results, tuple) else (results,)
    end.args = (results,)
    outputs = tuple(spec_of(node, f"out{i}", table.names) for i, node in enumerate(results))
    structure = Structure("tuple", tuple(Structure("tensor") for _ in results))
    program = replace(program, outputs=outputs, structure=structure)
    verify(program)
    return program


def operations(program: Program) -> list[str]:
    """The body's lines: everything between the signature and the return, with the return."""
    return [line.strip() for line in program_text(program).splitlines()[1:]]


def cleaned(instance: Pass, program: Program) -> Program:
    before = program_text(program, full=True)
    sites = instance.legality(program)
    assert isinstance(sites, list)
    result = instance.rewrite(program, sites)
    verify(result)
    assert program_text(program, full=True) == before, "the Program it was given changed"
    for want, got in zip(
        program.run(program.example_inputs), result.run(program.example_inputs), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    return result


def test_dead_code_and_the_weights_that_only_it_read_are_removed() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        g.call(aten.relu.default, g.add(x, g.weight("unused", torch.ones(4))))
        return g.mul(x, g.weight("used", torch.ones(4)))

    program = program_of(body)
    assert operations(program) == [
        "%add_tensor = add(%x, @unused) -> f32[batch, tokens, 4]",
        "%relu_default = relu(%add_tensor) -> f32[batch, tokens, 4]",
        "%mul_tensor = mul(%x, @used) -> f32[batch, tokens, 4]",
        "return %mul_tensor",
    ]
    result = cleaned(DeadCode(), program)
    assert operations(result) == [
        "%mul_tensor = mul(%x, @used) -> f32[batch, tokens, 4]",
        "return %mul_tensor",
    ]
    assert list(result.weights) == ["used"]


def test_equal_computations_are_done_once() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        left = g.mul(g.call(aten.neg.default, x), g.call(aten.neg.default, x))
        return g.add(left, g.mul(g.call(aten.neg.default, x), 2))

    assert operations(cleaned(CommonSubexpressions(), program_of(body))) == [
        "%neg_default = neg(%x) -> f32[batch, tokens, 4]",
        "%mul_tensor = mul(%neg_default, %neg_default) -> f32[batch, tokens, 4]",
        "%mul_tensor_1 = mul(%neg_default) {other=2} -> f32[batch, tokens, 4]",
        "%add_tensor = add(%mul_tensor, %mul_tensor_1) -> f32[batch, tokens, 4]",
        "return %add_tensor",
    ]


def test_sizes_of_equal_dims_are_read_once() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        other = g.call(aten.relu.default, x)
        shape = [g.size(x, 0), g.size(x, 1), 2, 2]
        again = [g.size(other, 0), g.size(other, 1), 2, 2]
        return g.add(g.call(aten.reshape.default, x, shape), g.call(aten.reshape.default, other, again))

    result = cleaned(CommonSubexpressions(), program_of(body))
    assert program_text(result, full=True).count("= sym_size") == 2


def test_numbers_that_python_holds_equal_are_not_confused() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        ids = g.call(aten.to.dtype, x, torch.int64)
        whole, real = g.mul(ids, 1), g.mul(ids, 1.0)
        return g.add(real, g.call(aten.to.dtype, whole, torch.float32))

    text = program_text(cleaned(CommonSubexpressions(), program_of(body)))
    assert "{other=1} -> i64" in text
    assert "{other=1.0} -> f32" in text


def test_random_numbers_are_drawn_as_often_as_written() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        return g.call(aten.sub.Tensor, *(g.call(aten.dropout.default, x, 0.5, True) for _ in range(2)))

    program = program_of(body)
    for part in parts():
        assert part.legality(program) == []


def test_two_equal_outputs_stay_two_values() -> None:
    def body(g: Builder, x: fx.Node) -> tuple[fx.Node, ...]:
        return g.call(aten.neg.default, x), g.call(aten.neg.default, x), g.call(aten.clone.default, x)

    program = program_of(body)
    assert operations(cleaned(Cleanup(), program)) == operations(program)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.dropout.default, (0.1, False)),
        (aten.clone.default, ()),
        (aten.contiguous.default, ()),
        (aten.detach.default, ()),
        (aten.alias.default, ()),
        (aten.lift_fresh_copy.default, ()),
        (aten.to.dtype, (torch.float32,)),
        (aten.to.device, (torch.device("cpu"), torch.float32)),
        (aten._to_copy.default, ()),
        (aten.add.Tensor, (0,)),
        (aten.sub.Tensor, (0.0,)),
        (aten.mul.Tensor, (1,)),
        (aten.div.Tensor, (1.0,)),
        (aten.slice.Tensor, (1, 0, 2**63 - 1)),
        (aten.slice.Tensor, (2, 0, 4)),
        (aten.expand.default, ([-1, -1, 4],)),
        (aten.permute.default, ([0, 1, 2],)),
        (aten.permute.default, ([0, -2, 2],)),
        (aten.transpose.int, (1, 1)),
        (aten.squeeze.dim, (2,)),
        (aten.repeat.default, ([1, 1, 1],)),
    ],
)
def test_an_operator_that_returns_its_operand_is_removed(target: Any, args: tuple[Any, ...]) -> None:
    program = program_of(lambda g, x: g.call(aten.relu.default, g.call(target, x, *args)))
    assert operations(cleaned(Identities(), program)) == [
        "%relu_default = relu(%x) -> f32[batch, tokens, 4]",
        "return %relu_default",
    ]


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_a_quotient_by_one_that_is_rounded_stays(mode: str) -> None:
    program = program_of(lambda g, x: g.call(aten.div.Tensor_mode, x, 1, rounding_mode=mode))
    assert len(operations(cleaned(Identities(), program))) == 2


def test_a_reshape_to_the_shape_there_is_is_removed() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        return g.call(aten.relu.default, g.call(aten.reshape.default, x, [g.size(x, 0), -1, 4]))

    assert "reshape" not in program_text(cleaned(Identities(), program_of(body)))


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.dropout.default, (0.1, True)),
        (aten.to.dtype, (torch.float64,)),
        (aten.add.Tensor, (1e-30,)),
        (aten.mul.Tensor, (1 + 1e-12,)),
        (aten.slice.Tensor, (1, 1, 2**63 - 1)),
        (aten.slice.Tensor, (2, 0, 4, 2)),
        (aten.transpose.int, (0, 1)),
        (aten.permute.default, ([1, 0, 2],)),
        (aten.unsqueeze.default, (0,)),
        (aten.flip.default, ([1],)),
        (aten.repeat.default, ([1, 2, 1],)),
    ],
)
def test_an_operator_that_does_something_is_left_alone(target: Any, args: tuple[Any, ...]) -> None:
    program = program_of(lambda g, x: g.call(aten.relu.default, g.call(target, x, *args)))
    assert Identities().legality(program) == []


def test_broadcasting_by_a_neutral_operand_is_no_identity() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        row = g.call(aten.select.int, g.call(aten.select.int, x, 0, 0), 0, 0)
        return g.add(g.call(aten.type_as.default, row, x), x)

    assert operations(cleaned(Identities(), program_of(body))) == [
        "%select_int = select(%x) {dim=0, index=0} -> f32[tokens, 4]",
        "%select_int_1 = select(%select_int) {dim=0, index=0} -> f32[4]",
        "%add_tensor = add(%select_int_1, %x) -> f32[batch, tokens, 4]",
        "return %add_tensor",
    ]


def test_transposes_that_undo_each_other_vanish() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        back = g.call(aten.transpose.int, g.call(aten.transpose.int, x, 1, 2), 2, 1)
        return g.call(aten.relu.default, back)

    result = cleaned(Cleanup(), program_of(body))
    assert operations(result) == [
        "%relu_default = relu(%x) -> f32[batch, tokens, 4]",
        "return %relu_default",
    ]


def test_a_chain_of_permutes_is_one() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        turned = g.call(aten.permute.default, g.call(aten.transpose.int, x, 0, 1), [2, 0, 1])
        return g.call(aten.relu.default, g.call(aten.transpose.int, turned, 0, 1))

    assert operations(cleaned(Cleanup(), program_of(body))) == [
        "%permute_default_2 = permute(%x) {dims=[1, 2, 0]} -> f32[tokens, 4, batch]",
        "%relu_default = relu(%permute_default_2) -> f32[tokens, 4, batch]",
        "return %relu_default",
    ]


def test_a_reshape_of_a_reshape_is_one() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        flat = g.call(aten.unsqueeze.default, g.call(aten.reshape.default, x, [-1, 4]), 0)
        heads = g.call(aten.reshape.default, flat, [g.size(x, 0), g.size(x, 1), 2, -1])
        return g.call(aten.relu.default, heads)

    assert operations(cleaned(Cleanup(), program_of(body))) == [
        "%reshape_default_3 = reshape(%x) {shape=[batch, tokens, 2, -1]} -> f32[batch, tokens, 2, 2]",
        "%relu_default = relu(%reshape_default_3) -> f32[batch, tokens, 2, 2]",
        "return %relu_default",
    ]


def test_what_weights_alone_decide_is_computed_once() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        table = g.call(aten.cos.default, g.mul(g.weight("angles", torch.arange(4.0)), 0.5))
        return g.mul(x, table)

    result = cleaned(Cleanup(), program_of(body))
    assert operations(result) == [
        "%mul_tensor_1 = mul(%x, @folded.cos_default) -> f32[batch, tokens, 4]",
        "return %mul_tensor_1",
    ]
    assert list(result.weights) == ["folded.cos_default"]
    torch.testing.assert_close(result.weights["folded.cos_default"], torch.cos(torch.arange(4.0) * 0.5))


def test_folding_goes_as_far_as_it_shrinks_the_model() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        small = g.call(aten.exp.default, g.weight("small", torch.zeros(4)))
        return g.add(x, g.mean(g.call(aten.repeat.default, small, [4096, 1]), [0]))

    result = cleaned(ConstantFolding(growth=0), program_of(body))
    assert [tuple(weight.shape) for weight in result.weights.values()] == [(4,)]


def test_folding_does_not_grow_the_model_past_the_limit() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        wide = g.call(
            aten.repeat.default, g.call(aten.exp.default, g.weight("small", torch.zeros(4))), [9, 1, 1]
        )
        return g.add(g.call(aten.slice.Tensor, x, 0, 0, 1), wide)

    program = program_of(body)
    assert ConstantFolding(growth=0).legality(program) == []
    sites = ConstantFolding(growth=128).legality(program)
    assert [site.facts["bytes"] for site in sites] == [9 * 16 - 16]


def test_a_weight_that_is_read_elsewhere_counts_as_growth() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        weight = g.weight("shared", torch.ones(4))
        return g.mul(g.add(x, weight), g.call(aten.exp.default, weight))

    program = program_of(body)
    assert ConstantFolding(growth=15).legality(program) == []
    assert len(ConstantFolding(growth=16).legality(program)) == 1


def test_a_view_of_a_weight_is_not_worth_folding() -> None:
    program = program_of(
        lambda g, x: g.add(x, g.call(aten.unsqueeze.default, g.weight("w", torch.ones(4)), 0))
    )
    assert ConstantFolding().legality(program) == []


def test_a_pass_acts_only_at_the_sites_it_is_given() -> None:
    def body(g: Builder, x: fx.Node) -> fx.Node:
        return g.call(aten.clone.default, g.call(aten.relu.default, g.call(aten.contiguous.default, x)))

    program = program_of(lambda g, x: g.call(aten.neg.default, body(g, x)))
    first, second = Identities().legality(program)
    assert (first.node, second.node) == ("contiguous_default", "clone_default")
    text = program_text(Identities().rewrite(program, [second]))
    assert "contiguous(" in text
    assert "clone(" not in text


@pytest.mark.parametrize("part", [*parts(), Cleanup()], ids=lambda part: part.name)
def test_every_clean_up_pass_promises_to_be_exact(part: Pass) -> None:
    assert (part.promised, part.family) == (Promise.EXACT, "cleanup")


@settings(max_examples=5, deadline=None)
@given(configs(layers=1, noise=True))
def test_each_clean_up_pass_keeps_random_transformers_exact(config: Config) -> None:
    program = build(config)
    sizes = {"batch": 3, "tokens": 6} if config.dynamic else {"batch": config.batch, "tokens": config.tokens}
    inputs = inputs_of(program, config, seed=1, **sizes)
    want = program.run(inputs)
    weights = sum(weight.numel() * weight.element_size() for weight in program.weights.values())
    for part in (*parts(), Cleanup()):
        sites = part.legality(program)
        assert isinstance(sites, list)
        result = part.rewrite(program, sites)
        verify(result, shapes=isinstance(part, Cleanup))
        torch.testing.assert_close(result.run(inputs), want)
        assert len(result.graph.nodes) <= len(program.graph.nodes)
        grown = sum(weight.numel() * weight.element_size() for weight in result.weights.values()) - weights
        assert grown <= ConstantFolding().growth


@settings(max_examples=5, deadline=None)
@given(configs(layers=1, noise=True))
def test_clean_up_ends_where_nothing_is_left_and_finds_all_noise(config: Config) -> None:
    result = Cleanup().rewrite(build(config), Cleanup().legality(build(config)))
    assert Cleanup().legality(result) == []
    text = program_text(result)
    for noise in ("dropout", "contiguous", " to(", "relu(", "exp(", "zeros("):
        assert noise not in text
