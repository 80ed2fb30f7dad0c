"""What a query sees is written once for all layers that see the same, and never for one that sees something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tersor.codegen.onnx.export import build

from .conftest import Agree, small_program

aten = torch.ops.aten
DIMS = {name: {0: "batch", 2: "tokens"} for name in "qkv"} | {"padding": {0: "batch", 1: "tokens"}}


def operands(batch: int, tokens: int) -> dict[str, Tensor]:
    return {name: torch.randn(batch, 2, tokens, 8) for name in "qkv"}


def padded(batch: int, tokens: int) -> dict[str, Tensor]:
    return operands(batch, tokens) | {"padding": torch.arange(tokens) < torch.randint(2, tokens, (batch, 1))}


@pytest.mark.parametrize("causal", [False, True])
def test_layers_of_one_padding_and_several_windows(agree: Agree, causal: bool) -> None:
    def layers(b: Any, q: Any, k: Any, v: Any, padding: Any) -> Any:
        return tuple(
            b.op("attention", q, k, v, None, padding, scale=0.3, causal=causal, window=window)
            for window in (2, 4, 0)
        )

    agree(layers, DIMS, padded(2, 7), padded(3, 10))


@pytest.mark.parametrize("window", [0, 3])
def test_layers_of_several_numbers_of_queries_and_keys(agree: Agree, window: int) -> None:
    """As below and above a layer that drops tokens, where nothing else tells their masks apart."""

    def layers(b: Any, q: Any, k: Any, v: Any) -> Any:
        fewer = [b.call(aten.slice.Tensor, x, 2, 0, 4) for x in (q, k, v)]
        return tuple(
            b.op("attention", *given, scale=0.3, causal=True, window=window)
            for given in ((q, k, v), (fewer[0], k, v), (q, *fewer[1:]), fewer)
        )

    agree(layers, DIMS, operands(2, 7), operands(3, 10))


def test_layers_that_see_the_same_read_one_mask() -> None:
    def layers(b: Any, q: Any, k: Any, v: Any, padding: Any) -> Any:
        return tuple(
            b.op("attention", q, k, v, None, padding, scale=scale, causal=True) for scale in (0.3, 0.5, 0.7)
        )

    # As a session gets it: of a file, equal nodes are merged later.
    model = build(small_program(layers, DIMS, padded(2, 7)), "portable", for_session=True)
    assert [node.op_type for node in model.graph].count("Where") == 1


@pytest.mark.parametrize("options", [{"causal": True}, {"window": 2}, {"causal": True, "window": 2}], ids=str)
def test_a_query_placed_before_every_key_that_it_may_see_yields_zeros(
    agree: Agree, options: dict[str, Any]
) -> None:
    """No padding hides the keys; only their positions do."""

    def attends(b: Any, q: Any, k: Any, v: Any, at: Any, keys_at: Any) -> Any:
        return b.op("attention", q, k, v, None, None, at, keys_at, scale=0.3, **options)

    places = {"at": torch.tensor([[0, 1, 6, 9]]), "keys_at": torch.tensor([[4, 5, 6, 7]])}
    agree(attends, {}, operands(1, 4) | places)


@pytest.mark.parametrize("sides", ["queries", "keys", "both"])
def test_positions_hide_nothing_without_an_order(agree: Agree, sides: str) -> None:
    def attends(b: Any, q: Any, k: Any, v: Any, places: Any) -> Any:
        at, keys_at = (places if sides in (side, "both") else None for side in ("queries", "keys"))
        return b.op("attention", q, k, v, None, None, at, keys_at, scale=0.3)

    agree(attends, {}, operands(1, 4) | {"places": torch.tensor([[0, 3, 6, 9]])})
