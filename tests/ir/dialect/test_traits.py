"""Analyses treat an operator by its traits: under another name, with operands in another order, all stays the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from random_programs import Config, build, inputs_of
from token_streams import TOKENS, graph_of, heads, weight
from torch import Tensor, fx

from tersor.ir.analyses.cost import cost
from tersor.ir.analyses.layers import content_flow, is_attention, layers, restores_or_reduces
from tersor.ir.analyses.located import Located
from tersor.ir.analyses.real_tokens import real_tokens
from tersor.ir.analyses.token_axis import NotTokenwise, TokenAxis, follow, region_nodes
from tersor.ir.builder import Builder
from tersor.ir.dialect import (
    DIALECT,
    Attends,
    DialectOp,
    Dim,
    Role,
    Traits,
    dialect_of,
    dialect_op,
    traits_of,
)
from tersor.ir.program import Program
from tersor.ir.verifier import verify
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.legality import why_not
from tersor.passes.tokens.positions import positions_read

aten = torch.ops.aten
Ops = dict[str, DialectOp]


def register_twin(op: DialectOp) -> str:
    """The same operator under another name; where it moves tokens, with its operands in the opposite order."""
    operands, results = re.fullmatch(r"[\w:]+\((.*)\) -> (.*)", str(op.overload._schema)).groups()  # type: ignore[union-attr]
    turned = op.traits.role is Role.MOVES
    if turned:
        operands = ", ".join(reversed(operands.split(", ")))

    def called(*args: Any, **kwargs: Any) -> Any:
        return op.overload(*(args[::-1] if turned else args), **kwargs)

    def flops(*args: Any, **kwargs: Any) -> Any:
        return op.flops(*(args[::-1] if turned else args), **kwargs)

    name = f"twin_of_{op.name}"
    declare = dialect_op(name, f"({operands}) -> {results}", shape=called, flops=flops, traits=op.traits)
    declare(called)
    return name


@pytest.fixture(scope="module")
def twins() -> Iterator[Ops]:
    """By an operator's name, its twin; what lists the dialect sees none of them afterwards."""
    known = dict(DIALECT)
    for op in known.values():
        register_twin(op)
    yield {name: DIALECT[f"twin_of_{name}"] for name in known}
    for name in DIALECT.keys() - known.keys():
        del DIALECT[name]


def renamed(program: Program, twins: Ops) -> Program:
    """``program`` on twins of its dialect operators, its nodes called as before."""
    program = program.edit()
    for node in program.graph.nodes:
        op = dialect_of(node)
        if op is not None:
            node.target = twins[op.name].overload
            node.args = node.args[::-1] if op.traits.role is Role.MOVES else node.args
    verify(program)
    return program


def answers(program: Program, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the analyses say of a Program, by the names of its nodes."""
    stack = layers(program)
    counted = cost(program)
    refusals = [why_not(program, stack, index) for index in range(len(stack))]
    return {
        "stream": [node.name for node in stack.stream],
        "blocks": [(b.start.name, b.after_attention.name, b.end.name, b.label) for b in stack.blocks],
        "attention": [node.name for node in program.graph.nodes if is_attention(node)],
        "moves": [node.name for node in program.graph.nodes if restores_or_reduces(node)],
        "flow": {(a.name, b.name) for a, b in content_flow(program).edges},
        "cost": {name: (node.flops, node.bytes) for name, node in counted.by_node.items()},
        "real": {name: real.tolist() for name, real in real_tokens(program, inputs).items()},
        "read": [(read.node.name, read.ahead, read.behind) for read in positions_read(program, stack)],
        "axis": followed(program, stack[0].start),
        "refused": [refusal and (refusal.node, refusal.reason) for refusal in refusals],
    }


def followed(program: Program, start: fx.Node) -> Any:
    try:
        context, _ = follow(program, start, None, (1, 1))
    except NotTokenwise as refusal:
        return refusal.node.name, refusal.reason
    return {node.name: dims for node, dims in context.found.items()}


def rewritten(program: Program, *passes: str) -> Program:
    for spec in passes:
        drop = parse_spec(f"token-drop:keep=0.6,{spec}")
        sites = drop.legality(program)
        assert isinstance(sites, list)
        program = drop.rewrite(program, sites)
    return program


def assert_alike(program: Program, twins: Ops, inputs: dict[str, Tensor]) -> dict[str, Any]:
    found = answers(program, inputs)
    assert found == answers(renamed(program, twins), inputs)
    return found


def test_another_name_changes_nothing_in_an_untouched_model(twins: Ops) -> None:
    config = Config(layers=3, padding=True)
    program = build(config)
    found = assert_alike(program, twins, inputs_of(program, config, batch=3, tokens=9))
    assert len(found["attention"]) == len(found["blocks"]) == 3
    assert not found["moves"]
    assert found["refused"] == [None] * 3


@pytest.mark.parametrize("method", ["random", "received-attention", "tome", "pool", "zero-tprune"])
def test_another_name_changes_nothing_where_every_token_comes_back(twins: Ops, method: str) -> None:
    config = Config(layers=3, padding=True)
    program = rewritten(build(config), f"method={method},layers=0")
    found = assert_alike(program, twins, inputs_of(program, config, batch=3, tokens=9))
    assert len(found["attention"]) == len(found["blocks"]) == 3
    assert found["moves"]
    assert found["real"]


@pytest.mark.parametrize("method", ["random", "cls-attention", "hired"])
def test_another_name_changes_nothing_where_one_token_is_read(twins: Ops, method: str) -> None:
    config = Config(layers=3, padding=True, output="first")
    program = rewritten(build(config), f"method={method},layers=0")
    found = assert_alike(program, twins, inputs_of(program, config, batch=3, tokens=9))
    assert found["moves"]
    assert [(ahead, behind) for _, ahead, behind in found["read"]] == [(1, 0)]


def test_another_name_changes_nothing_of_what_bounds_a_bias(twins: Ops) -> None:
    config = Config(layers=3)
    program = rewritten(build(config), "method=random,layers=0,proportional=true", "method=random,layers=1")
    found = assert_alike(program, twins, inputs_of(program, config, batch=3, tokens=9))
    # The last layer's bias was gathered, and is still known to hide nothing.
    assert found["refused"][2] is None


@pytest.mark.parametrize("named", ["attention", "attention_importance"])
@pytest.mark.parametrize("twin", [False, True])
def test_tokens_are_where_attention_puts_them_whatever_its_mask(twins: Ops, named: str, twin: bool) -> None:
    def attends(g: Builder, x: fx.Node) -> fx.Node:
        pairs = g.call(aten.matmul.default, x, g.call(aten.transpose.int, x, 1, 2))
        mask = g.call(aten.unsqueeze.default, pairs, 1)
        weights = [weight(g, 1, 1, TOKENS)] if named == "attention_importance" else []
        op = twins[named] if twin else DIALECT[named]
        return g.call(op.overload, *[heads(g, x)] * 3, *weights, mask, scale=1.0)

    program, stream, node = graph_of(attends, False)
    located = Located(TokenAxis(), stream, 1)
    for other in region_nodes(program, stream, node):
        located.follow(other)
    at = frozenset({2})
    assert located.found[node] == (at if named == "attention" else (at, at))


def test_attention_with_an_operand_that_its_traits_leave_out_is_refused(gated: str) -> None:
    def attends(g: Builder, x: fx.Node) -> fx.Node:
        gate = weight(g, 6)
        return g.op(gated, *[heads(g, x)] * 3, gate)

    program, stream, node = graph_of(attends, False)
    assert is_attention(node)
    assert [n.name for n in content_flow(program).predecessors(node)] == [node.all_input_nodes[0].name]
    with pytest.raises(NotTokenwise, match=f"traits of {gated} do not say what its gate mean for tokens"):
        follow(program, stream, None, (0, 0))


@pytest.fixture
def gated() -> Iterator[str]:
    name, attention = "gated_attention_of_a_test", DIALECT["attention"]
    traits = Traits(Role.ATTENDS, ("query", "key", "value"))

    def called(query: Tensor, key: Tensor, value: Tensor, gate: Tensor) -> Tensor:
        return attention.overload(query, key, value, scale=1.0)  # type: ignore[no-any-return]

    schema = "(Tensor query, Tensor key, Tensor value, Tensor gate) -> Tensor"
    dialect_op(name, schema, shape=called, flops=attention.flops, traits=traits)(called)
    yield name
    del DIALECT[name]


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        (Traits(Role.MOVES, content=("y",)), "speak of y; it takes no such argument"),
        (Traits(Role.MOVES, content=("x",), index="at"), "speak of at; it takes no such argument"),
        (Traits(Role.MOVES, content=("x",), dim="axis"), "speak of axis; it takes no such argument"),
        (Traits(Role.MOVES, content=("x",), onto="base"), "speak of base; it takes no such argument"),
        (Traits(attends=Attends(window="near")), "speak of near; it takes no such argument"),
        (Traits(Role.ATTENDS, content=("index", "x")), "do not name its first three operands"),
        (Traits(attends=Attends(lines_up={"x": (Dim.QUERIES, Dim.KEYS)})), "without a batch in front"),
        (Traits(Role.MOVES), "name 0 operands as its content, not one"),
        (Traits(content=("x", "index"), taken=True), "name 2 operands as its content, not one"),
    ],
)
def test_traits_that_cannot_be_are_refused_where_the_operator_is_declared(
    traits: Traits, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        dialect_op("never", "(Tensor x, Tensor index) -> Tensor", shape=str, flops=str, traits=traits)
    assert "never" not in DIALECT


def test_what_is_no_dialect_operator_has_no_traits() -> None:
    graph = fx.Graph()
    node = graph.call_function(aten.relu.default, (graph.placeholder("attention"),))
    assert [traits_of(n).role for n in graph.nodes] == [Role.PLAIN] * 2
    assert dialect_of(node) is None
