"""Rotary embeddings in complex numbers, as in Meta's Llama: no complex value is left, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.ir.capture import capture
from tersor.ir.program import Program
from tersor.passes.pipeline import run

HEADS, WIDTH = 2, 8


def angles(count: int) -> Tensor:
    return torch.outer(torch.arange(count).float(), 1.0 / 100 ** (torch.arange(0, WIDTH, 2) / WIDTH))


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """``x [batch, tokens, heads, width]`` by ``turns [tokens, width / 2]``."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns.view(1, x.shape[1], 1, -1)).flatten(3).type_as(x)


class Llama(nn.Module):
    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.computed = computed
        self.register_buffer("turns", torch.polar(torch.ones(64, WIDTH // 2), angles(64)), persistent=False)
        self.table = nn.Embedding(50, HEADS * WIDTH)
        self.layers = nn.ModuleList(nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(HEADS * WIDTH, HEADS * WIDTH) for _ in range(2))
        self.head = nn.Linear(HEADS * WIDTH, 50)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        batch, count = ids.shape
        turns = (
            torch.polar(torch.ones(count, WIDTH // 2), angles(count)) if self.computed else self.turns[:count]
        )
        for layer, out in zip(self.layers, self.outs, strict=True):
            query, key, value = layer(x).view(batch, count, 3, HEADS, WIDTH).unbind(2)
            heads = (part.transpose(1, 2) for part in (turned(query, turns), turned(key, turns), value))
            mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + out(mixed.transpose(1, 2).flatten(2))
        return self.head(x)


def has_complex(program: Program) -> bool:
    values = [node.meta.get("val") for node in program.graph.nodes]
    return any(isinstance(value, Tensor) and value.is_complex() for value in values)


@pytest.mark.parametrize("computed", [False, True], ids=["table", "computed"])
def test_rotary_embeddings(computed: bool) -> None:
    torch.manual_seed(0)
    model = Llama(computed).eval()
    ids = torch.randint(0, 50, (2, 9))
    program = capture(model, ids)
    assert not has_complex(program)
    assert not any(weight.is_complex() for weight in program.weights.values())
    for passes in ([], ["token-drop:method=received-attention,keep=0.6,layers=0"]):
        fast = tersor.optimize_model(program, passes, "onnx")
        reference = tersor.optimize_model(program, passes, "torch")
        for other in (ids, torch.randint(0, 50, (3, 13))):
            torch.testing.assert_close(fast(other), reference(other), atol=1e-4, rtol=1e-4)
            if not passes:
                torch.testing.assert_close(fast(other), model(other), atol=1e-5, rtol=1e-5)


def test_a_cache_goes_in() -> None:
    torch.manual_seed(0)
    model = Llama(computed=False).eval()
    program, _ = run(capture(model, torch.randint(0, 50, (2, 9))), ["kv-cache"])
    ids = torch.randint(0, 50, (2, 11))
    torch.testing.assert_close(program(ids), model(ids), atol=1e-5, rtol=1e-5)


Function = Callable[[Tensor], Tensor]
DONE: dict[str, Function] = {
    "complex of parts": lambda z: torch.view_as_real(torch.complex(z.real, z.imag * 2)),
    "conjugate": lambda z: torch.view_as_real(z * z.conj()),
    "resolved": lambda z: torch.view_as_real(torch.conj(z).resolve_conj()),
    "times real numbers": lambda z: torch.view_as_real(z * z.real * 0.5),
    "moved": lambda z: torch.view_as_real(z.transpose(0, -1).permute(2, -2, 0).unsqueeze(-1)),
    "taken": lambda z: torch.view_as_real(z[:, 1:, None].expand(-1, -1, 3, -1)[..., 1]),
    "put together": lambda z: torch.view_as_real(
        torch.cat([z[..., ::2], torch.stack([z, z], -1)[..., 0]], -1)
    ),
    "squeezed": lambda z: torch.view_as_real(z.unsqueeze(1).squeeze(1) * z.unsqueeze(-1).squeeze(-1)[:, :1]),
    "looked up": lambda z: torch.view_as_real(z[:, torch.tensor([1, 0])]),
}


class Called(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.view_as_complex(x.unflatten(-1, (-1, 2))))


@pytest.mark.parametrize("name", DONE)
def test_what_is_done_with_them(name: str) -> None:
    model = Called(DONE[name]).eval()
    program = capture(model, torch.randn(2, 5, 8))
    assert not has_complex(program)
    x = torch.randn(3, 6, 8)
    torch.testing.assert_close(program(x), model(x), atol=1e-6, rtol=1e-6)


def test_more_than_that_stays_as_it_is() -> None:
    model = Called(lambda z: z.exp().abs()).eval()
    program = capture(model, torch.randn(2, 5, 8))
    assert has_complex(program)
    x = torch.randn(3, 6, 8)
    torch.testing.assert_close(program(x), model(x))
