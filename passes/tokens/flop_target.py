"""``flops=``: the one kept share at every layer with which a Program costs the wanted share of its FLOPs."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial

from tersor.ir.analyses.cost import cost
from tersor.ir.analyses.layers import is_attention, layers
from tersor.ir.errors import RefusedError
from tersor.ir.fix_sizes import fix_sizes
from tersor.ir.program import Program

_TOLERANCE = 0.003
_STEPS = 8

Share = Callable[[int], float]  # of the FLOPs, as a function of the share kept in thousandths


def solve_flops(
    program: Program,
    chosen: Collection[int],
    share: float,
    least_keep: int,
    rewrite: Callable[[Program, dict[int, int]], Program],
) -> Program:
    """``rewrite`` of ``program`` with the one kept share at every chosen layer that leaves ``share`` of its FLOPs.

    The cost analysis of the rewritten Program at the example's sizes decides, so the cost of choosing tokens is
    counted too.  Where tokens are few, their whole numbers set how near it can come.

    Args:
        chosen: layers whose tokens are reduced.
        least_keep: the smallest share that may be kept, in thousandths.
        rewrite: the reduced Program, from a Program and the kept share by layer, in thousandths.

    Raises:
        RefusedError: even the strongest reduction at these layers costs more than ``share``.
    """
    sizes = program.sizes()
    full = program.analysis(cost).at(**sizes).flops
    trial = fix_sizes(program, sizes)
    without_choosing = forecast(program, chosen, sizes)
    first = min(chosen)
    alone = _largest(partial(_fits, share, without_choosing, lambda _: 0.0), least_keep)
    once = cost(rewrite(trial, {first: alone})).at().flops / full - forecast(program, [first], sizes)(alone)
    choosing = _choosing(once, len(chosen))
    tried: dict[int, float] = {}
    best = (float("inf"), least_keep)
    results: dict[int, Program] = {}
    while len(tried) < _STEPS:
        keep = _largest(partial(_fits, share, without_choosing, choosing), least_keep)
        if keep in tried:
            break
        # The first try is as a rule the last: it is made on the Program itself, the others where sizes are numbers.
        reduced = rewrite(trial if tried else program, dict.fromkeys(chosen, keep))
        if not tried:
            results[keep] = reduced
        tried[keep] = cost(reduced).at(**(sizes if keep in results else {})).flops / full
        error = abs(tried[keep] - share)
        best = min(best, (error, keep))
        if error <= _TOLERANCE:
            break
        if keep == least_keep and tried[keep] > share:
            raise RefusedError(
                f"flops={share:g} is out of reach at layers {'+'.join(map(str, chosen))}: keeping {keep / 10:g}% of "
                f"the tokens there still costs {tried[keep]:.3f}; name earlier layers"
            )
        choosing = _line([(k, found - without_choosing(k)) for k, found in tried.items()][-2:])
    keep = best[1]
    return results[keep] if keep in results else rewrite(program, dict.fromkeys(chosen, keep))


def forecast(program: Program, chosen: Collection[int], sizes: dict[str, int]) -> Share:
    """The share of its FLOPs that a Program costs as a function of the share kept, but for the cost of choosing.

    Past every site there are ``keep`` times as many tokens; attention costs their square, the rest of the blocks
    their number, and what is outside of the blocks the same as before.
    """
    stack, spent = program.analysis(layers), program.analysis(cost).flops_by_node(**sizes)
    sites = {stack[index].after_attention for index in chosen}
    by_power: Counter[int] = Counter()
    passed = 0
    for node in program.graph.nodes:
        by_power[passed * (2 if is_attention(node) else 1)] += spent.get(node.name, 0)
        passed = 0 if node is stack.end else passed + (node in sites)
    total = max(1, by_power.total())
    return lambda keep: sum(flops * (keep / 1000) ** power for power, flops in by_power.items()) / total


def _choosing(once: float, sites: int) -> Share:
    """The share of its FLOPs that choosing adds, from what it costs at the first site alone.

    Methods compare tokens in pairs, so choosing at a later site costs the square of the share that is left there.
    """
    return lambda kept: once * sum((kept / 1000) ** (2 * site) for site in range(sites))


def _fits(share: float, without_choosing: Share, choosing: Share, keep: int) -> bool:
    return without_choosing(keep) + choosing(keep) <= share


def _line(points: list[tuple[int, float]]) -> Share:
    """The straight line through up to two points; level where there is one."""
    (left, low), (right, high) = points[0], points[-1]
    slope = (high - low) / (right - left) if right != left else 0.0
    return lambda keep: low + slope * (keep - left)


def _largest(fits: Callable[[int], bool], least: int) -> int:
    """The largest share in thousandths from ``least`` to all but one that fits; ``least`` where none does."""
    return bisect.bisect_left(range(least + 1, 1000), True, key=lambda keep: not fits(keep)) + least
