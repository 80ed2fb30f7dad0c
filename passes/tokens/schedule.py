"""Which layers reduce tokens, and by how much."""

from __future__ import annotations

from collections.abc import Sequence


def default_layers(free: Sequence[int]) -> tuple[int, ...]:
    """The last layer of each of the first three quarters of the free ones.

    DynamicViT drops before a quarter, a half and three quarters of the blocks, and EViT inside the blocks that come
    next.  Dropping inside the blocks before reaches the same FLOPs with more tokens kept at each layer.
    """
    return tuple(sorted({free[max(0, len(free) * i // 4 - 1)] for i in (1, 2, 3)}))


def per_layer(keep: Sequence[float], layers: Sequence[int]) -> dict[int, int]:
    """Kept share in thousandths by layer; one value serves all layers.

    Raises:
        ValueError: as many values as layers were expected.
    """
    values = list(keep) * len(layers) if len(keep) == 1 else list(keep)
    if len(values) != len(layers):
        raise ValueError(f"keep has {len(values)} values for {len(layers)} layers; give one, or one for each")
    return {layer: max(1, round(value * 1000)) for layer, value in zip(layers, values, strict=True)}
