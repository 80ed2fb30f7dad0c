"""Where a rule says that the token axis carries over, an operator on chosen tokens gives the chosen results."""

from __future__ import annotations

import re

import pytest
import torch
from token_cases import MIXING, REFUSED, TOKENWISE
from token_streams import BATCH, TOKENS, WIDTH, Case, graph_of
from torch import Tensor, fx

from tersor.ir.analyses.token_axis import RULES, Context, NotTokenwise, follow
from tersor.ir.builder import Builder
from tersor.ir.dialect import traits_of
from tersor.ir.program import Program
from tersor.ir.shapes import fake_call, fake_mode
from tersor.passes.fewer_tokens import reduce_along


def chosen_values(value: Tensor, index: Tensor, context: Context, node: fx.Node) -> Tensor:
    """The tokens ``index`` of a result, along every dim that the rule names."""
    fold, rows = context.fold(node), context.rows
    dims = context.dims(node)
    if fold is not None:
        (dim,) = dims
        value = value.movedim(dim, 0)
        value = value.reshape(BATCH, TOKENS, *value.shape[1:])
        picked = torch.stack([value[b, index[b]] for b in range(BATCH)])
        return picked.flatten(0, 1).movedim(0, dim)
    assert rows is not None
    (batch,) = rows.dims(node)
    picked_rows = []
    for row, kept in zip(value.unbind(batch), index, strict=True):
        for dim in dims:
            row = row.index_select(dim - (dim > batch), kept)
        picked_rows.append(row)
    return torch.stack(picked_rows, batch)


def reduced(case: Case, dynamic: bool, index: Tensor) -> tuple[Program, Context, fx.Node]:
    """The case's Program on the tokens of ``index`` only, as the structural rewrite makes it."""
    program, stream, result = graph_of(case, dynamic)
    context, _ = follow(program, stream, None, (0, 0))
    readers = [user for user in stream.users if user in context.found]
    g = Builder(program, min(readers))
    chosen = g.weight("index", index)
    gathered = g.op("gather_tokens", stream, chosen, 1)
    for reader in readers:
        reader.replace_input_with(stream, gathered)
    reduce_along(g, context.axis, stream, chosen)
    with fake_mode(program), torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "call_function":
                node.meta["val"] = fake_call(node)
    program.graph.lint()
    return program, context, result


# Operands with as many entries as there are tokens: only a stream of one length can have them.
FIXED_LENGTH = {name for name in TOKENWISE if re.search("table|pair|each token", name)} | {
    "where", "masked_fill", "and, or", "lerp", "rotary tables on heads",
}  # fmt: skip
STREAMS = [(name, False) for name in TOKENWISE] + [
    (name, True) for name in TOKENWISE if name not in FIXED_LENGTH
]


@pytest.mark.parametrize(("name", "dynamic"), STREAMS)
def test_an_operator_on_chosen_tokens_gives_the_chosen_results(name: str, dynamic: bool) -> None:
    draw = (torch.randperm(TOKENS)[:4].sort().values for _ in range(3 * BATCH))
    choices = torch.stack(list(draw)).reshape(3, BATCH, 4)
    full, _, _ = graph_of(TOKENWISE[name], dynamic)
    program, context, result = reduced(TOKENWISE[name], dynamic, choices[0])
    assert not context.axis.mixing
    for index in choices:
        x = torch.randn(BATCH, TOKENS, WIDTH)
        program.weights["index"] = index
        expected = chosen_values(full.run({"x": x})[0], index, context, result)
        assert torch.allclose(program.run({"x": x})[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", MIXING)
def test_operators_that_mix_tokens_take_fewer_of_them(name: str) -> None:
    index = torch.tensor([[0, 2, 5], [1, 2, 3]])
    program, context, result = reduced(MIXING[name], False, index)
    assert context.dims(result) == frozenset({2})
    assert bool(context.axis.attention) is ("attention" in name)
    assert bool(context.axis.mixing) is ("attention" not in name)
    assert program.run({"x": torch.randn(BATCH, TOKENS, WIDTH)})[0].shape == (BATCH, 2, 3, 4)


@pytest.mark.parametrize("name", MIXING)
def test_operators_that_mix_tokens_are_unchanged_by_keeping_all(name: str) -> None:
    index = torch.arange(TOKENS).expand(BATCH, -1).contiguous()
    full, _, _ = graph_of(MIXING[name], False)
    program, _, _ = reduced(MIXING[name], False, index)
    x = torch.randn(BATCH, TOKENS, WIDTH)
    assert torch.allclose(program.run({"x": x})[0], full.run({"x": x})[0], atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_fewer_tokens_would_change_is_refused_by_node(name: str) -> None:
    case, reason = REFUSED[name]
    program, stream, _ = graph_of(case, False)
    with pytest.raises(NotTokenwise, match=reason) as caught:
        follow(program, stream, None, (0, 0))
    assert caught.value.node in program.graph.nodes
    assert caught.value.node.name in str(caught.value)


def test_every_rule_has_a_case() -> None:
    used = set()
    for case in [*TOKENWISE.values(), *MIXING.values(), *(case for case, _ in REFUSED.values())]:
        program, _, _ = graph_of(case, False)
        for node in program.graph.nodes:
            used |= {node.target, getattr(node.target, "overloadpacket", None), traits_of(node).role}
    assert set(RULES) - used == set()
