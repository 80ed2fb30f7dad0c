"""Which layers reduce tokens, and by how much."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from tersor.ir.analyses.cost import cost
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program

_TOLERANCE = 0.003
_STEPS = 8


def default_layers(free: Sequence[int]) -> tuple[int, ...]:
    """A quarter, a half and three quarters of the way down the free layers, as EViT and DynamicViT place them."""
    return tuple(sorted({free[len(free) * i // 4] for i in (1, 2, 3)}))


def per_layer(keep: Sequence[float], layers: Sequence[int]) -> dict[int, int]:
    """Kept share in thousandths by layer; one value serves all layers.

    Raises:
        ValueError: as many values as layers were expected.
    """
    values = list(keep) * len(layers) if len(keep) == 1 else list(keep)
    if len(values) != len(layers):
        raise ValueError(f"keep has {len(values)} values for {len(layers)} layers; give one, or one for each")
    return {layer: max(1, round(value * 1000)) for layer, value in zip(layers, values, strict=True)}


def solve_flops(
    program: Program,
    layers: Sequence[int],
    depth: int,
    share: float,
    least_keep: int,
    rewrite: Callable[[dict[int, int]], Program],
) -> Program:
    """``rewrite`` with the one kept share at every layer whose Program costs ``share`` of the FLOPs.

    The cost analysis of the rewritten Program at the example's sizes decides, so the cost of choosing tokens is
    counted too.  Where tokens are few, their whole numbers set how near it can come.

    Raises:
        RefusedError: even the strongest reduction at these layers costs more than ``share``.
    """
    sizes = example_sizes(program)
    full = program.analysis(cost).at(**sizes).flops
    tried: dict[int, float] = {}
    best: tuple[float, Program] | None = None
    slope = 1.0
    while len(tried) < _STEPS:
        # The cost is nearly linear in the tokens that a layer sees on average, so a step or two suffice.
        keep = _keep_for(1.0 - (1.0 - share) / slope, layers, depth, least_keep)
        if keep in tried:
            break
        result = rewrite(dict.fromkeys(layers, keep))
        tried[keep] = cost(result).at(**sizes).flops / full
        error = abs(tried[keep] - share)
        if best is None or error < best[0]:
            best = error, result
        if error <= _TOLERANCE:
            break
        if keep == least_keep and tried[keep] > share:
            raise RefusedError(
                f"flops={share:g} is out of reach at layers {'+'.join(map(str, layers))}: keeping {keep / 10:g}% of "
                f"the tokens there still costs {tried[keep]:.3f}; name earlier layers"
            )
        slope = max(1e-3, 1.0 - tried[keep]) / max(1e-3, 1.0 - tokens_seen(keep, layers, depth))
    assert best is not None
    return best[1]


def tokens_seen(keep_per_mille: int, layers: Sequence[int], depth: int) -> float:
    """Share of its tokens that a layer sees on average; attention sees those before its site, the rest those after."""
    fraction, total = 1.0, 0.0
    for layer in range(depth):
        total += fraction / 2
        fraction *= keep_per_mille / 1000 if layer in layers else 1.0
        total += fraction / 2
    return total / depth


def _keep_for(seen: float, layers: Sequence[int], depth: int, least_keep: int) -> int:
    """The kept share at which layers see ``seen`` of the tokens on average, within what the method can keep."""
    return bisect.bisect_left(
        range(1000), seen, lo=least_keep, key=lambda keep: tokens_seen(keep, layers, depth)
    )


def example_sizes(program: Program) -> dict[str, int]:
    """The sizes that the example inputs give to the symbolic dims."""
    sizes: dict[str, int] = {}
    for spec in program.inputs:
        example = program.example_inputs[spec.name]
        sizes |= {d: int(s) for d, s in zip(spec.shape, example.shape, strict=True) if isinstance(d, str)}
    return sizes
