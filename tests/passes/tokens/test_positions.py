"""What is read by position, held against what moves when tokens that may be dropped change places."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from token_streams import BATCH, TOKENS, WIDTH, Case, call, graph_of
from torch import Tensor, fx

from tersor.ir.analyses.layers import Layer, Layers
from tersor.ir.analyses.token_axis import NotTokenwise
from tersor.ir.builder import Builder
from tersor.ir.errors import VerifierError
from tersor.passes.tokens.positions import positions_read

aten = torch.ops.aten
Step = Callable[[Builder, fx.Node], fx.Node]


def _dims(x: fx.Node) -> int:
    return x.meta["val"].dim()  # type: ignore[no-any-return]


def _slice(draw: st.DrawFn) -> Step:
    dim, start, stop = (
        draw(st.integers(0, 3)),
        draw(st.integers(-3, 3)),
        draw(st.sampled_from([3, 5, -1, 99])),
    )
    return lambda g, x: g.call(aten.slice.Tensor, x, dim % _dims(x), start, stop)


def _select(draw: st.DrawFn) -> Step:
    dim, index = draw(st.integers(0, 3)), draw(st.integers(-2, 1))
    return lambda g, x: g.call(aten.select.int, x, dim % _dims(x), index)


def _transpose(draw: st.DrawFn) -> Step:
    a, b = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return lambda g, x: g.call(aten.transpose.int, x, a % _dims(x), b % _dims(x))


def _reshape(draw: st.DrawFn) -> Step:
    dim = draw(st.integers(0, 2))

    def merged(g: Builder, x: fx.Node) -> fx.Node:
        at = dim % (_dims(x) - 1)
        sizes = [g.size(x, d) for d in range(_dims(x))]
        return g.call(aten.reshape.default, x, [*sizes[:at], -1, *sizes[at + 2 :]])

    return merged


def _heads(draw: st.DrawFn) -> Step:
    return lambda g, x: g.call(aten.unflatten.int, x, _dims(x) - 1, [2, -1])


def _index(draw: st.DrawFn) -> Step:
    dim, places = draw(st.integers(0, 2)), draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
    return lambda g, x: g.call(
        aten.index_select.default, x, dim % _dims(x), g.weight("places", torch.tensor(places))
    )


def _split(draw: st.DrawFn) -> Step:
    dim, part = draw(st.integers(0, 2)), draw(st.integers(0, 1))
    return lambda g, x: g.item(g.call(aten.split.Tensor, x, 2, dim % _dims(x)), part)


def _flip(draw: st.DrawFn) -> Step:
    dim = draw(st.integers(0, 2))
    return lambda g, x: g.call(aten.flip.default, x, [dim % _dims(x)])


def _join(draw: st.DrawFn) -> Step:
    dim = draw(st.integers(0, 2))
    return lambda g, x: g.call(aten.cat.default, [x, x], dim % _dims(x))


_STEPS = (_slice, _select, _transpose, _reshape, _heads, _index, _split, _flip, _join)


@st.composite
def chains(draw: st.DrawFn) -> list[Step]:
    return [draw(st.sampled_from(_STEPS))(draw) for _ in range(draw(st.integers(1, 4)))]


@settings(max_examples=200, deadline=None)
@given(steps=chains(), dynamic=st.booleans(), dim=st.integers(0, 1))
def test_tokens_that_may_be_dropped_change_places_unnoticed(
    steps: list[Step], dynamic: bool, dim: int
) -> None:
    """All steps move and choose numbers, so that the numbers chosen are the same after two tokens changed places."""

    def head(g: Builder, x: fx.Node) -> fx.Node:
        for step in steps:
            try:
                x = step(g, x)
            except (VerifierError, IndexError, ZeroDivisionError):
                continue
        return g.mul(x, 1.0)

    program, stream, _ = graph_of(head, dynamic)
    program.graph.eliminate_dead_code()
    layer = Layer(0, (), program.find("x"), stream, stream, "")
    try:
        reads = positions_read(program, Layers((layer,), (stream,), (), dim))
    except NotTokenwise:
        return
    tokens = (TOKENS, BATCH)[1 - dim]
    ahead = max((read.ahead for read in reads), default=0)
    behind = max((read.behind for read in reads), default=0)
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    try:
        want = _chosen(program.run({"x": x})[0])
    except (IndexError, RuntimeError):  # a place beyond the size
        assume(False)
    for place in range(ahead, tokens - behind - 1):
        order = list(range(tokens))
        order[place : place + 2] = place + 1, place
        got = _chosen(program.run({"x": x.index_select(dim, torch.tensor(order))})[0])
        assert torch.equal(want, got), (ahead, behind, str(program))


def _chosen(value: Tensor) -> Tensor:
    return value.flatten().sort().values


def protected(head: Case, dynamic: bool) -> tuple[int, int]:
    """Tokens at each end that hold every one that ``head`` reads by position."""
    program, stream, _ = graph_of(head, dynamic)
    layer = Layer(0, (), program.find("x"), stream, stream, "")
    reads = positions_read(program, Layers((layer,), (stream,), (), 1))
    return max((read.ahead for read in reads), default=0), max((read.behind for read in reads), default=0)


def then(*cases: Case) -> Case:
    def written(g: Builder, x: fx.Node) -> fx.Node:
        for case in cases:
            x = case(g, x)
        return x

    return written


def select(dim: int, index: int) -> Case:
    return call(aten.select.int, dim, index)


def tokens(start: int, stop: int) -> Case:
    return call(aten.slice.Tensor, 1, start, stop)


def product(equation: str) -> Case:
    return lambda g, x: g.call(aten.einsum.default, equation, [x, g.weight("w", torch.randn(WIDTH, 5))])


def at(*places: Tensor | None) -> Case:
    """Entries by a table for each dim, which may be one of truth values for several dims."""
    return lambda g, x: g.call(
        aten.index.Tensor, x, [place if place is None else g.weight("places", place) for place in places]
    )


def part_of_a_table(g: Builder, x: fx.Node) -> fx.Node:
    table = g.weight("places", torch.tensor([0, 1, 2, 3]))
    return g.call(aten.index_select.default, x, 1, g.call(aten.slice.Tensor, table, 0, 1, 3))


folded = call(aten.reshape.default, [-1, WIDTH])
transposed = call(aten.transpose.int, 1, 2)
whole_rows = torch.ones(BATCH, TOKENS, dtype=torch.bool)
channels = torch.zeros(BATCH, WIDTH, dtype=torch.bool).index_fill(1, torch.tensor(3), True)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("head", "ends"),
    [
        # One token beside many is broadcast to them: token 2 is still at place 2.
        (then(lambda g, x: g.call(aten.add.Tensor, x, tokens(0, 1)(g, x)), select(1, 2)), (3, 0)),
        # In another order, and yet no dim but theirs holds tokens.
        (then(call(aten.flip.default, [1]), select(2, 0)), (0, 0)),
        (then(call(aten.roll.default, [1], [1]), select(2, 0)), (0, 0)),
        # Entry 0 of a sum over all tokens is no token.
        (then(transposed, lambda g, x: g.call(aten.einsum.default, "...f->...", [x]), select(1, 0)), (0, 0)),
        # A table of truth values for two dims moves those behind it by two.
        (then(transposed, at(channels, torch.tensor([1]))), (2, 0)),
        # Of the places in a table, those that are taken from it.
        (then(part_of_a_table, select(1, 0)), (3, 0)),
    ],
    ids=["broadcast", "flip", "roll", "sum", "truth values", "part of a table"],
)  # fmt: skip
def test_no_more_is_protected_than_is_read(head: Case, ends: tuple[int, int], dynamic: bool) -> None:
    assert protected(head, dynamic) == ends


def test_a_start_before_the_first_entry_is_the_first_entry() -> None:
    """Of the tokens 1 to 4, token 1 is read."""
    assert protected(then(tokens(1, TOKENS), tokens(-99, 4), select(1, 0)), dynamic=False) == (2, 1)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("head", "reason"),
    [
        # Entry 7 is token 1 of row 1.
        (then(folded, select(0, TOKENS + 1)), "folded together"),
        # Two neighbours in one entry.
        (
            then(lambda g, x: g.call(aten.add.Tensor, tokens(1, 3)(g, x), tokens(0, 2)(g, x)), select(1, 0)),
            "was not followed",
        ),
        # Equations without their result, whose last dim is the tokens, and rows folded with them.
        (then(product("bte,ef"), select(2, 0)), "was not followed"),
        (then(folded, product("te,ef"), select(1, TOKENS + 1)), "was not followed"),
        (at(whole_rows), "not known before the model runs"),
    ],
    ids=["folded", "neighbours", "product", "folded product", "truth values"],
)
def test_what_cannot_be_followed_is_refused_where_it_is_read(head: Case, reason: str, dynamic: bool) -> None:
    with pytest.raises(NotTokenwise, match=reason):
        protected(head, dynamic)
