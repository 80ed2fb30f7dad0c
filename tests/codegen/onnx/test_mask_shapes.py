"""A mask of any shape that broadcasts to ``[batch, heads, queries, keys]``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

BATCH, HEADS, TOKENS = 2, 4, 5
SHAPES = [
    (TOKENS, TOKENS),
    (1, TOKENS),
    (TOKENS, 1),
    (HEADS, TOKENS, TOKENS),
    (HEADS, 1, TOKENS),
    (1, 1, TOKENS, 1),
    (1, HEADS, TOKENS, 1),
    (1, HEADS, TOKENS, TOKENS),
    (BATCH, 1, 1, TOKENS),
    (BATCH, HEADS, TOKENS, TOKENS),
]
OPTIONS: list[dict[str, Any]] = [{}, {"padding": True}, {"causal": True, "window": 3}, {"softcap": 3.0}]


def case(kv_heads: int, shape: tuple[int, ...], kind: str, padding: bool) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    heads = {"q": HEADS, "k": kv_heads, "v": kv_heads}
    made = {name: torch.randn(BATCH, count, TOKENS, 8, generator=random) for name, count in heads.items()}
    seen = torch.rand(shape, generator=random) > 0.3
    bias = torch.randn(shape, generator=random)
    made["mask"] = seen if kind == "bool" else bias.masked_fill(~seen, float("-inf"))
    if padding:
        made["padding"] = torch.tensor([[True] * TOKENS, [True] * 3 + [False] * 2])
    return made


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention(
    agree: Any, options: dict[str, Any], kv_heads: int, shape: tuple[int, ...], kind: str
) -> None:
    settings = {name: value for name, value in options.items() if name != "padding"}

    def build(b: Any, q: Any, k: Any, v: Any, mask: Any, padding: Any = None) -> Any:
        return b.op("attention", q, k, v, mask, padding, scale=0.3, **settings)

    agree(build, {}, case(kv_heads, shape, kind, "padding" in options))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_and_importance(agree: Any, shape: tuple[int, ...], kind: str) -> None:
    def build(b: Any, q: Any, k: Any, v: Any, mask: Any, weights: Any) -> Any:
        importance = b.op("attention_importance", q, k, v, weights, mask, scale=0.3)
        rows = b.op("attention_weights", q, k, mask, scale=0.3)
        return rows, b.item(importance, 0), b.item(importance, 1)

    agree(build, {}, case(HEADS, shape, kind, False) | {"weights": torch.rand(BATCH, HEADS, TOKENS)})
