"""Which layers reduce tokens, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tersor.ir.analyses.cost import cost
from tersor.ir.errors import RefusedError
from tersor.ir.program import Program

_TOLERANCE = 0.003
_STEPS = 12


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
    share: float,
    least_keep: int,
    rewrite: Callable[[dict[int, int]], Program],
) -> dict[int, int]:
    """The one kept share (at every layer) whose Program costs ``share`` of the FLOPs at the example's sizes.

    The cost analysis of the rewritten Program decides, so the cost of choosing tokens is counted too.

    Raises:
        RefusedError: even the strongest reduction at these layers costs more than ``share``.
    """
    sizes = example_sizes(program)
    full = cost(program).at(**sizes).flops

    def ratio(keep: int) -> float:
        return float(cost(rewrite(dict.fromkeys(layers, keep))).at(**sizes).flops / full)

    low, high = least_keep, 1000
    if (least := ratio(low)) > share + _TOLERANCE:
        raise RefusedError(
            f"flops={share:g} is out of reach at layers {'+'.join(map(str, layers))}: keeping {low / 10:g}% of the "
            f"tokens there still costs {least:.3f}; name earlier layers"
        )
    best, error = high, 1.0 - share
    below, above = least, 1.0
    for _ in range(_STEPS):
        # False position: the cost is close to linear in the kept share, so a few steps suffice.
        guess = low + (high - low) * (share - below) / max(above - below, 1e-9)
        keep = min(high - 1, max(low + 1, round(guess)))
        value = ratio(keep)
        if abs(value - share) < error:
            best, error = keep, abs(value - share)
        if error <= _TOLERANCE or high - low <= 2:
            break
        if value > share:
            high, above = keep, value
        else:
            low, below = keep, value
    return dict.fromkeys(layers, best)


def example_sizes(program: Program) -> dict[str, int]:
    """The sizes that the example inputs give to the symbolic dims."""
    sizes: dict[str, int] = {}
    for spec in program.inputs:
        example = program.example_inputs[spec.name]
        sizes |= {d: int(s) for d, s in zip(spec.shape, example.shape, strict=True) if isinstance(d, str)}
    return sizes
