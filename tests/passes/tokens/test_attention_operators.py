"""Attention operators of one's own: what their traits declare is all that token dropping asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from random_programs import Config, build, inputs_of
from token_streams import TOKENS, graph_of, heads, weight
from torch import Tensor, fx

from tersor.ir.analyses.layers import is_attention
from tersor.ir.analyses.token_axis import NotTokenwise, follow
from tersor.ir.builder import Builder
from tersor.ir.dialect import DIALECT, Attends, Dim, Role, Traits, dialect_op
from tersor.ir.errors import RefusedError
from tersor.ir.operands import arguments
from tersor.ir.program import Program
from tersor.ir.verifier import verify
from tersor.passes.contract import Refusal
from tersor.passes.spec import parse_spec
from tersor.passes.tokens.cls_attention import class_rows
from tersor.passes.tokens.drop import TokenDrop
from tersor.passes.tokens.method import Reduction, Scorer, TokenMethod, TokenSite, drop, select
from tersor.passes.tokens.zero_tprune import uniform

Given = dict[str, Any]
Declare = Callable[..., str]
ATTENTION = DIALECT["attention"]
# Operands of attention under names that no analysis has heard of.
POSITIONS = {"query_positions": "rows", "key_positions": "columns"}
RENAMED = {"mask": "bias", "padding": "real", **POSITIONS}
OPERANDS = "Tensor? bias=None, Tensor? real=None, Tensor? rows=None, Tensor? columns=None"
GROUPS = torch.arange(7)[None] % 3
TOGETHER = (GROUPS[:, :, None] == GROUPS[:, None, :])[:, None]
WITHOUT_MASK = "Tensor? real=None, Tensor? rows=None, Tensor? columns=None"


@pytest.fixture
def declare() -> Iterator[Declare]:
    """``declare(operands, attends, meaning)``: the name of a new operator, which is ``attention`` of what ``meaning``
    makes of its arguments; none of the dialect's afterwards."""
    made: list[str] = []

    def declared(operands: str, attends: Attends, meaning: Callable[[Given], Given]) -> str:
        name = f"own_attention_{next(_NUMBERS)}"
        schema = f"(Tensor query, Tensor key, Tensor value, {operands}) -> Tensor"
        known = torch._C.parse_schema(f"tersor::{name}{schema}").arguments[3:]
        defaults = {a.name: a.default_value for a in known if a.has_default_value()}

        def called(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            given = defaults | {a.name: v for a, v in zip(known, args, strict=False)} | kwargs
            return ATTENTION.overload(query, key, value, **meaning(given))  # type: ignore[no-any-return]

        traits = Traits(Role.ATTENDS, ("query", "key", "value"), attends=attends)
        dialect_op(name, schema, shape=called, flops=ATTENTION.flops, traits=traits)(called)
        made.append(name)
        return name

    yield declared
    for name in made:
        del DIALECT[name]


_NUMBERS = count()  # what was defined once stays known to torch


def rewritten(
    program: Program, write: Callable[[Builder, fx.Node], fx.Node], only: int | None = None
) -> Program:
    """``program`` with what ``write`` writes in place of its attention, or of that of one layer."""
    program = program.edit()
    for index, node in enumerate([n for n in program.graph.nodes if is_attention(n)]):
        if only in (None, index):
            node.replace_all_uses_with(write(Builder(program, node, node.meta["layer"]), node))
            program.graph.erase_node(node)
    verify(program)
    return program


def spelled(program: Program, name: str, only: int | None = None, **given: str) -> Program:
    """``program`` with its attention as calls of operator ``name``, whose arguments ``given`` are the plain one's."""

    def write(g: Builder, node: fx.Node) -> fx.Node:
        plain = arguments(node)
        chosen = {own: plain[theirs] for own, theirs in given.items() if plain[theirs] is not None}
        return g.op(name, *node.args[:3], **chosen)

    return rewritten(program, write, only)


def dropped(program: Program, spec: str) -> Program:
    drop = parse_spec(f"token-drop:keep=0.5,{spec}")
    sites = drop.legality(program)
    assert not isinstance(sites, Refusal), str(sites)
    program = drop.rewrite(program, sites)
    verify(program)
    return program


def refused(program: Program, spec: str) -> str:
    """Why, once the node that stands in the way is seen to be attention."""
    found = parse_spec(f"token-drop:keep=0.6,{spec}").legality(program)
    assert isinstance(found, Refusal), found
    assert is_attention(program.find(found.node))
    return found.reason


def assert_equal(program: Program, plain: Program, config: Config) -> None:
    for batch, tokens in ((2, 7), (3, 12)):
        inputs = inputs_of(plain, config, batch=batch, tokens=tokens)
        torch.testing.assert_close(program.run(inputs), plain.run(inputs), atol=1e-5, rtol=1e-4)


def renamed(given: Given, **also: Any) -> Given:
    """Arguments of attention from those of ``RENAMED``."""
    return (
        {plain: given[own] for plain, own in RENAMED.items() if own in given}
        | {"scale": given["scale"]}
        | also
    )


@pytest.mark.parametrize("spec", ["method=norm,layers=0+1", "method=tome,layers=0", "method=pool,layers=1"])
@pytest.mark.parametrize("padding", [False, True])
def test_a_window_of_another_name_goes_by_true_positions(declare: Declare, spec: str, padding: bool) -> None:
    name = declare(
        f"{OPERANDS}, *, float scale, int near=0",
        Attends(**RENAMED, window="near", harmless=("scale",)),
        lambda given: renamed(given, window=given["near"]),
    )
    config = Config(layers=3, window=2, padding=padding)
    plain = build(config)
    own = spelled(plain, name, real="padding", scale="scale", near="window")
    assert_equal(dropped(own, spec), dropped(plain, spec), config)
    assert "windowed" in refused(own, "method=norm,layers=0,proportional=true")


def test_a_window_that_every_call_has_goes_by_true_positions(declare: Declare) -> None:
    name = declare(
        f"{OPERANDS}, *, float scale, int radius=1",
        Attends(**RENAMED, window=True, harmless=("scale", "radius")),
        lambda given: renamed(given, window=given["radius"] + 1),
    )
    config = Config(layers=3, window=2)
    plain = build(config)
    own = spelled(plain, name, scale="scale")
    spec = "method=norm,layers=0"
    assert_equal(dropped(own, spec), dropped(plain, spec), config)
    assert "windowed" in refused(own, "method=norm,layers=0,proportional=true")


@pytest.mark.parametrize("always", [False, True])
def test_causality_of_another_name_rules_out_what_looks_ahead(declare: Declare, always: bool) -> None:
    # The attribute is true where a call leaves it out, as the calls here do.
    name = declare(
        f"{OPERANDS}, *, float scale" + ("" if always else ", bool past_only=True"),
        Attends(**RENAMED, causal=True if always else "past_only", harmless=("scale",)),
        lambda given: renamed(given, causal=True),
    )
    config = Config(layers=3, causal=True, padding=True)
    plain = build(config)
    own = spelled(plain, name, real="padding", scale="scale")
    assert_equal(dropped(own, "method=norm,layers=0+1"), dropped(plain, "method=norm,layers=0+1"), config)
    for method in ("tome", "pool", "zero-tprune"):
        assert "attention is causal" in refused(own, f"method={method},layers=0,proportional=false")
    assert "attention is causal" in refused(own, "method=norm,layers=0,proportional=true")


def test_causality_that_is_off_rules_nothing_out(declare: Declare) -> None:
    name = declare(
        f"{OPERANDS}, *, float scale, bool past_only=True",
        Attends(**RENAMED, causal="past_only", harmless=("scale",)),
        lambda given: renamed(given, causal=given["past_only"]),
    )
    config = Config(layers=3, padding=True)
    plain = build(config)
    own = spelled(plain, name, real="padding", scale="scale", past_only="causal")
    assert_equal(dropped(own, "method=tome,layers=0"), dropped(plain, "method=tome,layers=0"), config)


def test_a_mask_of_another_name_weighs_keys(declare: Declare) -> None:
    name = declare(f"{OPERANDS}, *, float scale", Attends(**RENAMED, harmless=("scale",)), renamed)
    config = Config(layers=3, padding=True)
    plain = build(config)
    own = spelled(plain, name, real="padding", scale="scale")
    for spec in ("method=norm,layers=0+1,proportional=true", "method=tome,layers=0+1"):
        assert any(n.target is torch.ops.aten.log.default for n in dropped(own, spec).graph.nodes)
        assert_equal(dropped(own, spec), dropped(plain, spec), config)


def test_weights_of_keys_join_a_mask_of_another_name(declare: Declare) -> None:
    name = declare(f"{OPERANDS}, *, float scale", Attends(**RENAMED, harmless=("scale",)), renamed)
    config = Config(layers=3, dynamic=False)

    def masked(g: Builder, node: fx.Node) -> fx.Node:
        return g.op("attention", *node.args[:3], g.weight("mask", TOGETHER), scale=arguments(node)["scale"])

    plain = rewritten(build(config), masked)
    own = spelled(plain, name, bias="mask", scale="scale")
    inputs = inputs_of(plain, config, batch=2, tokens=7)
    found, expected = (dropped(p, "method=tome,layers=0").run(inputs) for p in (own, plain))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def without_mask(declare: Declare) -> str:
    attends = Attends(padding="real", **POSITIONS, harmless=("scale",))
    return declare(f"{WITHOUT_MASK}, *, float scale", attends, renamed)


def test_without_a_mask_keys_do_not_weigh_for_others(declare: Declare) -> None:
    config = Config(layers=3, padding=True)
    plain = build(config)
    own = spelled(plain, without_mask(declare), real="padding", scale="scale")
    for method in ("norm", "random"):
        spec = f"method={method},layers=0+1"
        assert_equal(dropped(own, spec), dropped(plain, f"{spec},proportional=false"), config)
    for spec in ("norm,proportional=true", "tome", "pool", "tome,proportional=true"):
        assert "takes no mask" in refused(own, f"layers=0,method={spec}")
    spec = "method=tome,layers=0,proportional=false"
    assert_equal(dropped(own, spec), dropped(plain, spec), config)


class Biased(TokenMethod):
    """Biases keys whatever it is told."""

    def reduce(self, g: Builder, site: TokenSite) -> Reduction:
        score = site.real(g)
        reduction = drop(g, site, select(g, site, score, site.keep_per_mille))
        reduction.key_bias = g.op("gather_tokens", score, reduction.index, 1)
        return reduction


def test_a_methods_own_bias_is_refused_where_there_is_no_mask_to_add_it_to(declare: Declare) -> None:
    own = spelled(build(Config(layers=3)), without_mask(declare), scale="scale")
    pass_ = TokenDrop(method=Biased(), layers=(0,))
    sites = pass_.legality(own)
    assert isinstance(sites, list)
    with pytest.raises(RefusedError, match=r"own_attention_\S+ takes no mask"):
        pass_.rewrite(own, sites)


@pytest.mark.parametrize("missing", ["query_positions", "key_positions"])
def test_a_window_that_no_positions_can_be_given_to_is_refused(declare: Declare, missing: str) -> None:
    names = {plain: own for plain, own in RENAMED.items() if plain != missing}
    operands = ", ".join(part for part in OPERANDS.split(", ") if RENAMED[missing] not in part)
    name = declare(
        f"{operands}, *, float scale, int near",
        Attends(**names, window="near", harmless=("scale",)),
        lambda given: renamed(given, window=given["near"]),
    )
    own = spelled(build(Config(layers=3, window=2)), name, scale="scale", near="window")
    reason = refused(own, "method=norm,layers=0")
    assert f"takes no {missing.replace('_', ' ')}" in reason
    # Where no call asks for distances, none are wanted.
    config = Config(layers=3)
    open_ = spelled(build(config), name, scale="scale", near="window")
    spec = "method=norm,layers=0,proportional=false"
    assert_equal(dropped(open_, spec), dropped(build(config), spec), config)


def test_order_survives_without_positions_where_queries_and_keys_lose_the_same_tokens(
    declare: Declare,
) -> None:
    name = declare(
        "*, float scale", Attends(causal=True, harmless=("scale",)), lambda given: given | {"causal": True}
    )
    config = Config(layers=3, causal=True)
    plain = build(config)
    spec = "method=norm,layers=0+1"
    assert_equal(dropped(spelled(plain, name, scale="scale"), spec), dropped(plain, spec), config)

    def attends_to_a_table(g: Builder, x: fx.Node) -> fx.Node:
        table = weight(g, 1, 2, TOKENS, 4)
        return g.op(name, heads(g, x), table, table, scale=1.0)

    program, stream, node = graph_of(attends_to_a_table, False)
    with pytest.raises(NotTokenwise, match="takes no query positions") as caught:
        follow(program, stream, None, (0, 0))
    assert caught.value.node is node


@pytest.mark.parametrize("layer", [0, 2])
def test_what_traits_leave_out_is_refused_at_the_site_and_behind_it(declare: Declare, layer: int) -> None:
    name = declare(
        f"{OPERANDS}, *, float scale, bool past_only=False, int near=0",
        Attends(**RENAMED, harmless=("scale",)),
        lambda given: renamed(given, causal=given["past_only"], window=given["near"]),
    )
    plain = build(Config(layers=3, window=2))
    own = spelled(plain, name, only=layer, scale="scale", past_only="causal", near="window")
    for method in ("norm", "tome"):
        reason = refused(own, f"method={method},layers=0,proportional=false")
        assert reason.startswith(
            f"the traits of {name} do not say what its near and past_only mean for tokens"
        )
        assert "declare that where the operator is defined" in reason


def grouped(declare: Declare, attends: Attends) -> tuple[Program, Program, Config]:
    """Attention within groups of tokens, told by operands of its own and told by a mask."""
    name = declare(
        "Tensor row_group, Tensor column_group, *, float scale",
        attends,
        lambda given: {
            "mask": (given["row_group"][:, :, None] == given["column_group"][:, None, :])[:, None],
            "scale": given["scale"],
        },
    )
    config = Config(layers=3, dynamic=False)

    def own(g: Builder, node: fx.Node) -> fx.Node:
        groups = g.weight("groups", GROUPS)
        return g.op(name, *node.args[:3], groups, groups, scale=arguments(node)["scale"])

    def plain(g: Builder, node: fx.Node) -> fx.Node:
        return g.op("attention", *node.args[:3], g.weight("mask", TOGETHER), scale=arguments(node)["scale"])

    return rewritten(build(config), own), rewritten(build(config), plain), config


def test_an_operand_of_its_own_loses_the_tokens_that_it_lines_up_with(declare: Declare) -> None:
    lines_up = {"row_group": (Dim.BATCH, Dim.QUERIES), "column_group": (Dim.BATCH, Dim.KEYS)}
    own, plain, config = grouped(declare, Attends(lines_up=lines_up, harmless=("scale",)))
    for spec in ("method=norm,layers=0+1", "method=tome,layers=0"):
        found, expected = (dropped(p, f"{spec},proportional=false") for p in (own, plain))
        inputs = inputs_of(plain, config, batch=2, tokens=7)
        torch.testing.assert_close(found.run(inputs), expected.run(inputs), atol=1e-5, rtol=1e-4)


def test_an_operand_that_holds_numbers_of_tokens_is_refused(declare: Declare) -> None:
    numbers = Attends(numbers=("column_group",), harmless=("row_group", "scale"))
    own, _, _ = grouped(declare, numbers)
    assert "its column_group holds numbers of tokens" in refused(own, "method=norm,layers=0")


def test_what_is_computed_from_the_stream_is_refused_even_where_it_is_harmless(declare: Declare) -> None:
    harmless = Attends(harmless=("gains", "scale"))
    name = declare("Tensor[] gains, *, float scale", harmless, lambda given: {"scale": given["scale"]})

    def attends(g: Builder, x: fx.Node) -> fx.Node:
        return g.op(name, *[heads(g, x)] * 3, [weight(g, 2), g.mean(x, [2])], scale=1.0)

    program, stream, node = graph_of(attends, False)
    with pytest.raises(NotTokenwise, match="its gains is computed from the stream") as caught:
        follow(program, stream, None, (0, 0))
    assert caught.value.node is node


@pytest.mark.parametrize("method", ["received-attention", "zero-tprune", "cls-attention", "hired"])
def test_what_only_attention_yields_is_refused_of_other_operators(declare: Declare, method: str) -> None:
    name = declare(f"{OPERANDS}, *, float scale", Attends(**RENAMED, harmless=("scale",)), renamed)
    plain = build(Config(layers=3, output="first"))
    own = spelled(plain, name, real="padding", scale="scale")
    assert f"{name}," in refused(own, f"method={method},layers=0")
    # HiRED looks at an earlier layer too.
    first = spelled(plain, name, only=0, real="padding", scale="scale")
    if method == "hired":
        assert f"{name}," in refused(first, "method=hired,layers=1,early=0")
    else:
        dropped(first, f"method={method},layers=1")


class Looks(Scorer):
    """Looks at attention without asking whether it can."""

    def __init__(self, importance: bool) -> None:
        self.importance = importance

    def score(self, g: Builder, site: TokenSite) -> fx.Node:
        rows = site.importance(g, lambda b: uniform(b, site)) if self.importance else class_rows(g, site)
        return g.mean(rows, [1])


@pytest.mark.parametrize("importance", [True, False])
def test_a_method_that_does_not_ask_is_refused_too(declare: Declare, importance: bool) -> None:
    own = spelled(build(Config(layers=3)), without_mask(declare), scale="scale")
    pass_ = TokenDrop(method=Looks(importance), layers=(0,), proportional=False)
    sites = pass_.legality(own)
    assert isinstance(sites, list)
    with pytest.raises(
        RefusedError, match=r"own_attention_\S+ (it )?is own_attention_\d+, of which (single rows|no form)"
    ):
        pass_.rewrite(own, sites)


def test_importance_that_another_pass_took_is_refused_as_such() -> None:
    program = dropped(build(Config(layers=3)), "method=received-attention,layers=1")
    site = next(n for n in program.graph.nodes if is_attention(n) and len(n.users) == 2)
    reason = TokenSite(site, site, None, 1, 3, 500, 0, 0).why_no_importance()
    assert reason is not None
    assert "yields something for another pass already" in reason
