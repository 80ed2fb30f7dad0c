"""Attention written in many ways becomes one dialect node that computes the same."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tersor.ir.capture import capture
from tersor.ir.dialect import is_dialect
from tersor.ir.program import Program

HEADS, HEAD_DIM = 4, 8
WIDTH = HEADS * HEAD_DIM


class Layer(nn.Module):
    """Projections around ``attend``, which sees ``[batch, heads, tokens, head_dim]``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.bias = nn.Parameter(torch.randn(HEADS, 1, 1))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (t.view(batch, tokens, HEADS, HEAD_DIM).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.attend(q, k, v).transpose(1, 2).reshape(batch, tokens, WIDTH)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Divided(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / math.sqrt(HEAD_DIM)).softmax(-1) @ v


class ScaledInPlace(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.matmul(q, k.mT)
        scores *= 0.3
        return torch.matmul(self.dropout(F.softmax(scores, dim=-1, dtype=torch.float32)).to(v.dtype), v)


class ScaledKeys(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ (k.transpose(-1, -2) * 0.25)).softmax(-1) @ v


class ScaledByTensor(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / torch.sqrt(torch.tensor(HEAD_DIM * 3.0))).softmax(-1) @ v


class Biased(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        distance = torch.arange(k.shape[2])[None, :] - torch.arange(q.shape[2])[:, None]
        scores = 0.5 * (q @ k.transpose(-1, -2) + self.bias * distance)
        return scores.softmax(-1) @ v


class Einsum(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * HEAD_DIM**-0.5).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", weights, v)


class EinsumTokensFirst(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(dim=3)
        return torch.einsum("bhqk,bkhd->bqhd", weights, v).transpose(1, 2)


class MergedHeads(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = q.shape[0]
        q, k, v = (t.reshape(batch * HEADS, -1, HEAD_DIM) for t in (q, k, v))
        weights = torch.bmm(q, k.transpose(1, 2)).view(batch, HEADS, q.shape[1], k.shape[1]).softmax(-1)
        out = torch.bmm(weights.view(batch * HEADS, q.shape[1], k.shape[1]), v)
        return out.view(batch, HEADS, -1, HEAD_DIM)


class MergedHeadsWithBias(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, tokens = q.shape[0], q.shape[2]
        bias = (self.bias * torch.arange(tokens)).repeat(batch, 1, 1)
        q, k, v = (t.reshape(batch * HEADS, -1, HEAD_DIM) for t in (q, k, v))
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=2.0, alpha=0.5)
        return torch.bmm(scores.softmax(-1), v).view(batch, HEADS, -1, HEAD_DIM)


class Triangle(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-1, -2)).masked_fill(later, float("-inf"))
        return scores.softmax(-1) @ v


class TriangleOverBias(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = q.shape[2]
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        scores = q @ k.transpose(-1, -2) + self.bias * torch.arange(n)
        return torch.where(seen, scores, torch.finfo(scores.dtype).min).softmax(-1) @ v


class BandAdded(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = torch.arange(q.shape[2])
        near = (n[:, None] - n[None, :]).abs() < 3
        hidden = torch.zeros(near.shape).masked_fill(~near, -1e9)
        return (q @ k.transpose(-1, -2) + hidden).softmax(-1) @ v


class Stable(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        return (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1) @ v


class StableByMax(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) + self.bias
        return (scores - scores.max(dim=-1, keepdim=True).values).softmax(-1) @ v


class MultiheadWithWeights(Layer):
    """``nn.MultiheadAttention`` asked for its weights leaves the fused call for ``baddbmm`` and ``bmm``."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=True)[0]


SPELLINGS = [
    Divided,
    ScaledInPlace,
    ScaledKeys,
    ScaledByTensor,
    Biased,
    Einsum,
    EinsumTokensFirst,
    MergedHeads,
    MergedHeadsWithBias,
    Triangle,
    TriangleOverBias,
    BandAdded,
    Stable,
    StableByMax,
    MultiheadWithWeights,
]


def captured(kind: type[nn.Module]) -> tuple[nn.Module, Program]:
    model = kind().eval()
    return model, capture(model, {"x": torch.randn(2, 7, WIDTH)})


def attention_node(program: Program) -> torch.fx.Node:
    (node,) = (n for n in program.graph.nodes if is_dialect(n, "attention"))
    return node


@pytest.mark.parametrize("kind", SPELLINGS, ids=lambda k: k.__name__)
def test_every_spelling_becomes_one_attention_node_that_computes_the_same(kind):
    model, program = captured(kind)
    attention_node(program)
    assert not any("softmax" in str(n.target) for n in program.graph.nodes)
    assert program.facts.unraised == ()
    x = torch.randn(3, 12, WIDTH)
    torch.testing.assert_close(program(x), model(x), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        (Divided, HEAD_DIM**-0.5),
        (ScaledInPlace, 0.3),
        (ScaledKeys, 0.25),
        (Biased, 0.5),
        (Einsum, HEAD_DIM**-0.5),
    ],
)
def test_the_scale_is_found(kind, scale):
    assert attention_node(captured(kind)[1]).kwargs["scale"] == pytest.approx(scale)


@pytest.mark.parametrize("kind", [MergedHeads, MergedHeadsWithBias, MultiheadWithWeights])
def test_joined_heads_are_told_apart_again(kind):
    query = attention_node(captured(kind)[1]).args[0].meta["val"]
    assert query.shape[1] == HEADS


@pytest.mark.parametrize(
    ("kind", "causal", "window", "biased"),
    [
        (Divided, False, 0, False),
        (Triangle, True, 0, False),
        (TriangleOverBias, True, 0, True),
        (BandAdded, False, 3, False),
        (Biased, False, 0, True),
    ],
)
def test_masks_become_attributes_and_biases_stay_operands(kind, causal, window, biased):
    node = attention_node(captured(kind)[1])
    assert (node.kwargs["causal"], node.kwargs["window"], node.args[3] is not None) == (
        causal,
        window,
        biased,
    )


class TalkingHeads(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HEADS, HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.mix((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return scores.softmax(-1) @ v


class LearnedTemperature(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * self.bias.exp()).softmax(-1) @ v


class ReturnsItsWeights(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return weights @ v + weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TalkingHeads, "does more with the scores"),
        (LearnedTemperature, "no positive constant"),
        (ReturnsItsWeights, "more than one place"),
    ],
)
def test_what_attention_cannot_say_stays_as_it_is_with_a_reason(kind, reason):
    model, program = captured(kind)
    ((name, text),) = program.facts.unraised
    assert reason in text
    assert "softmax" in str(program.find(name).target)
    x = torch.randn(3, 5, WIDTH)
    torch.testing.assert_close(program(x), model(x))


def test_a_softmax_that_is_no_attention_is_not_mentioned():
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).softmax(-1)

    program = capture(Classifier().eval(), {"x": torch.randn(2, 7, WIDTH)})
    assert program.facts.unraised == ()


class Discouraged(nn.Module):
    """Keys that a mask lowers by little, and which are seen all the same."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.low, self.qkv = low, nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3 * HEADS, HEAD_DIM)).transpose(1, 2).chunk(3, dim=1)
        scores = (q @ k.mT).masked_fill((mask == 0)[:, None, None], self.low)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("low", [-1.0, -9e3])
def test_a_value_that_hides_nothing_is_no_mask(low: float) -> None:
    model = Discouraged(low).eval()
    x, ones = torch.randn(2, 6, WIDTH), torch.ones(2, 6, dtype=torch.int64)
    program = capture(model, {"x": x, "mask": ones})
    assert not any(is_dialect(node, "attention") for node in program.graph.nodes)
    assert "does not hide them" in program.facts.unraised[0][1]
    some = ones.clone()
    some[:, ::2] = 0
    torch.testing.assert_close(program(x, some), model(x, some))


class Sloped(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i = torch.arange(q.shape[2])
        distance = (i[:, None] - i[None]).abs()
        scores = torch.sub(q @ k.mT * 0.2, distance * self.bias, alpha=2)
        return scores.masked_fill((i[:, None] < i[None]), float("-inf")).softmax(-1) @ v


class Negated(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.sub(torch.ones(1), q @ k.mT * 0.2).softmax(-1) @ v


class Warmed(Layer):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.tanh(q @ k.mT).masked_fill(torch.zeros(1, dtype=torch.bool), -1e9).softmax(-1) @ v


def test_a_bias_that_is_subtracted_is_a_bias() -> None:
    model = Sloped().eval()
    program = capture(model, {"x": torch.randn(2, 6, WIDTH)})
    assert sum(is_dialect(node, "attention") for node in program.graph.nodes) == 1
    x = torch.randn(3, 11, WIDTH)
    torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("kind", "reason"), [(Negated, "subtracted"), (Warmed, "aten.tanh.default")])
def test_what_does_more_with_scores_is_named(kind: type[Layer], reason: str) -> None:
    model = kind().eval()
    x = torch.randn(2, 6, WIDTH)
    program = capture(model, {"x": x})
    assert reason in program.facts.unraised[0][1]
    torch.testing.assert_close(program(x), model(x))


@pytest.mark.parametrize("temperature", [8.0, 500.0, 2000.0])
def test_scores_that_are_scaled_once_hidden_may_show_again(temperature: float) -> None:
    class Tempered(Layer):
        def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            i = torch.arange(q.shape[-2])
            scores = (q @ k.mT).masked_fill(i[:, None] < i[None], -1e4) / temperature
            return scores.softmax(-1) @ v

    model = Tempered().eval()
    program = capture(model, {"x": torch.randn(2, 6, WIDTH)})
    for tokens in (6, 11, 40):
        x = torch.randn(3, tokens, WIDTH)
        torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=1e-5)
