"""``F.scaled_dot_product_attention`` and repeated key heads become one grouped attention node, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor import optimize_model
from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program


class Heads(nn.Module):
    """``x [batch, tokens, 32]`` as 4 query heads over 2 key heads of 8."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = q[:, ::2] + 1, q[:, 1::2] - 1
        return self.attend(q, k, v).transpose(1, 2).flatten(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Grouped(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class Interleaved(Heads):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1))


class Expanded(Heads):
    """As transformers' ``repeat_kv`` writes it."""

    def repeat(self, x: Tensor) -> Tensor:
        batch, heads, tokens, width = x.shape
        return (
            x[:, :, None, :, :]
            .expand(batch, heads, 2, tokens, width)
            .reshape(batch, heads * 2, tokens, width)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v), is_causal=True, scale=0.2)


class ExpandedInAnotherOrder(Expanded):
    """The copies of a head are not neighbours: no grouping says that."""

    def repeat(self, x: Tensor) -> Tensor:
        batch, heads, tokens, width = x.shape
        return x[:, None].expand(batch, 2, heads, tokens, width).reshape(batch, heads * 2, tokens, width)


class OneHead(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


def captured(model: nn.Module) -> tuple[Program, torch.fx.Node]:
    program = capture(model, {"x": torch.randn(2, 6, 32)})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    x = torch.randn(3, 9, 32)
    assert torch.equal(program(x), model(x))
    return program, node


@pytest.mark.parametrize("model", [Grouped(), Interleaved(), Expanded()], ids=lambda m: type(m).__name__)
def test_key_heads_are_kept_as_few_as_they_are(model):
    _, node = captured(model)
    assert node.args[0].meta["val"].shape[1] == 4
    assert [n.meta["val"].shape[1] for n in node.args[1:3]] == [2, 2]


def test_copies_that_are_not_neighbours_are_left_alone():
    _, node = captured(ExpandedInAnotherOrder())
    assert node.args[1].meta["val"].shape[1] == 4


def test_scale_and_causality_are_carried_over():
    assert captured(Expanded())[1].kwargs == {"scale": 0.2, "causal": True, "window": 0, "softcap": 0.0}


def test_the_scale_left_out_is_that_of_the_head_width():
    assert captured(Grouped())[1].kwargs["scale"] == 8**-0.5


def test_operands_without_heads_have_one():
    model = OneHead()
    program = capture(model, {"x": torch.randn(2, 6, 32)})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    assert node.args[0].meta["val"].shape[1] == 1
    x = torch.randn(3, 9, 32)
    # PyTorch picks another kernel for three dims than for four.
    torch.testing.assert_close(program(x), model(x), atol=2e-6, rtol=1e-5)


def test_every_argument_is_written_out():
    _, node = captured(Grouped())
    assert len(node.args) == 8
    assert set(node.kwargs) == {"scale", "causal", "window", "softcap"}


class Cross(nn.Module):
    """Causal over a different number of keys than queries: top-left aligned here, and not what the dialect says."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[:, None], memory[:, None], memory[:, None], is_causal=True)


def test_causality_over_unequal_lengths_stays_aten_with_a_reason():
    model = Cross()
    given = {"x": torch.randn(2, 4, 8), "memory": torch.randn(2, 7, 8)}
    program = capture(model, given)
    ((_, reason),) = program.facts.unraised
    assert "different counts" in reason
    assert torch.equal(program(**given), model(**given))


class Unrolled(nn.Module):
    """As windows are attended to: two dims of batch before the heads."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x * 2, x + 1)


def test_several_dims_of_batch_become_one() -> None:
    model, x = Unrolled().eval(), torch.randn(2, 3, 4, 5, 8)
    program = capture(model, {"x": x})
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    assert node.args[0].meta["val"].dim() == 4
    for other in (x, torch.randn(3, 3, 4, 5, 8)):
        torch.testing.assert_close(program(other), model(other), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 1, 4), (4, 4, 1), (1, 4, 4)], ids=str)
def test_heads_that_are_broadcast_are_no_attention(heads: tuple[int, int, int]) -> None:
    class Broadcasts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            query, key, value = (x.unflatten(-1, (4, 8)).transpose(1, 2)[:, :n] for n in heads)
            return torch.softmax(query @ key.transpose(-1, -2), -1) @ value

    model = Broadcasts().eval()
    program = capture(model, {"x": torch.randn(2, 5, 32)})
    assert program.facts.unraised
    x = torch.randn(3, 7, 32)
    torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("learned", ["query", "key and value"])
@pytest.mark.parametrize("target", ["torch", "onnx"])
def test_learned_operands_are_those_of_every_row(learned: str, target: str) -> None:
    """As attention pooling has queries, and memories have keys and values, of batch 1."""

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.randn(2, 1, 4, 3, 8))

        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(-1, (4, 8)).transpose(1, 2)
            k, v = self.own
            found = (
                F.scaled_dot_product_attention(k, q, q + 1)
                if learned == "query"
                else F.scaled_dot_product_attention(q, k, v)
            )
            return found.transpose(1, 2).flatten(2)

    model = Learned().eval()
    fast = optimize_model(model, [], target, example_inputs={"x": torch.randn(2, 5, 32)})
    assert any(is_dialect(node, "attention") for node in fast.program.graph.nodes)
    for batch, tokens in ((1, 4), (3, 7)):
        x = torch.randn(batch, tokens, 32)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), atol=1e-5, rtol=1e-4)
